"""Manifests contain valid commands and configurations, and grant only the rights that are needed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private import util

from searchforge import __version__
from searchforge.config import load_config
from tests.infra.deploy.manifests import DEPLOY, MANIFESTS, ROOT, load, parse_command, pods

CONFIG = "/etc/searchforge/searchforge.yaml"
OVERLAYS = ("local", "cloud")
CRON_JOB = DEPLOY / "kubernetes" / "base" / "cron_job.yaml"
CLOUD_RUN = DEPLOY / "cloud_run"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlays_configuration_loads_and_matches_its_mounts(overlay: str) -> None:
    folder = DEPLOY / "kubernetes" / "overlays" / overlay
    config = load_config(folder / "searchforge.yaml")
    patches = [load(path) for path in (folder / "mounts.yaml", folder / "photos.yaml") if path.exists()]
    mounts = {
        mount["mountPath"]: mount.get("readOnly", False)
        for pod in pods(patches)
        for mount in pod["containers"][0]["volumeMounts"]
    }
    for place in (config.workspace, config.releases):
        assert place is None or place.startswith("gs://") or mounts[place] is False
    for place in (*config.data.captions, config.data.images):
        assert place and mounts[f"/{place.split('/')[1]}"] is True


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_containers_have_minimal_rights(path: Path) -> None:
    found = list(pods(load(path)))
    assert found
    for pod in found:
        for container in pod["containers"]:
            rights = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert rights["runAsNonRoot"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
            if container["name"] == "flink-main-container":  # Flink's entry point writes its configuration
                continue
            assert rights["readOnlyRootFilesystem"] is True
            resources = container["resources"]
            assert "cpu" in resources["requests"] and "memory" in resources["requests"]
            assert "memory" in resources["limits"]
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            written = {
                mount["mountPath"]: volumes[mount["name"]]
                for mount in container["volumeMounts"]
                if not mount.get("readOnly")
            }
            assert {"/tmp", "/home/searchforge"} <= written.keys()
            assert all("emptyDir" in volume for volume in written.values())


def test_the_nightly_run_is_bounded_and_exclusive() -> None:
    spec = load(CRON_JOB)["spec"]
    job = spec["jobTemplate"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] > 0
    assert 0 < job["activeDeadlineSeconds"] < 24 * 3600  # a run ends before the next one starts
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_all_schedulers_use_the_same_time() -> None:
    cron = load(CRON_JOB)["spec"]
    scheduler = json.loads((CLOUD_RUN / "scheduler.json").read_text())
    (dag,) = re.findall(r'schedule="(.*?)"', (DEPLOY / "airflow" / "searchforge_dag.py").read_text())
    assert cron["schedule"] == scheduler["schedule"] == dag
    assert cron["timeZone"] == scheduler["timeZone"]


def test_the_scheduler_starts_the_job_of_cloud_run() -> None:
    job = load(CLOUD_RUN / "job.yaml")
    uri = json.loads((CLOUD_RUN / "scheduler.json").read_text())["httpTarget"]["uri"]
    assert uri.endswith(f"/jobs/{job['metadata']['name']}:run")


def test_jobs_run_commands_that_exist() -> None:
    training = shlex.split(load(DEPLOY / "ray" / "rayjob.yaml")["spec"]["entrypoint"])
    for command in (training, _flink_job()):
        assert parse_command(command)["config_path"] == CONFIG


def test_nightly_runs_use_the_same_valid_command() -> None:
    files = (CRON_JOB, CLOUD_RUN / "job.yaml")
    nightly = [pod["containers"][0]["args"] for path in files for pod in pods(load(path))]
    given = [parse_command(["searchforge", *arguments]) for arguments in nightly]
    assert {options.pop("trigger") for options in given} == {"kubernetes", "cloud-run"}
    assert given[0] == given[1]
    assert given[0]["config_path"] == CONFIG


def test_the_flink_job_matches_the_cluster() -> None:
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions, SetupOptions

    given = parse_command(_flink_job())
    options = PipelineOptions(list(given["embed__beam_options"]))
    flink = options.view_as(FlinkRunnerOptions)
    cluster = load(DEPLOY / "beam" / "flink" / "cluster.yaml")
    assert given["embed__runner"] == "FlinkRunner"
    assert not options.get_all_options(drop_default=True).keys() - _known_options()
    assert flink.flink_version in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    assert cluster["spec"]["flinkVersion"] == f"v{flink.flink_version.replace('.', '_')}"
    assert cluster["spec"]["image"].startswith(f"flink:{flink.flink_version}-")
    assert flink.flink_master == f"{cluster['metadata']['name']}-rest:8081"
    assert flink.parallelism == cluster["spec"]["taskManager"]["replicas"]
    assert options.view_as(PortableOptions).environment_type == "EXTERNAL"
    assert cluster["spec"]["flinkConfiguration"]["restart-strategy.type"] == "fixed-delay"
    wheel = f"/opt/searchforge/wheels/searchforge-{__version__}-py3-none-any.whl"
    assert options.view_as(SetupOptions).extra_packages == [wheel]


def test_the_documented_flink_configuration_matches_the_job() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"```yaml\n(embed:\n.*?)```", text, re.DOTALL)
    embed = load_config(None, {f"embed.{key}": value for key, value in yaml.safe_load(block)["embed"].items()}).embed
    given = parse_command(_flink_job())
    assert (embed.runner, embed.beam_options) == (given["embed__runner"], given["embed__beam_options"])


def test_image_tags_have_the_current_version() -> None:
    files = [path for path in DEPLOY.rglob("*.yaml") if "/example/searchforge/" in path.read_text()]
    tags = {tag for path in files for tag in re.findall(r"/searchforge(?:-\w+)*:(\S+)", path.read_text())}
    overlays = {
        image["newTag"]
        for overlay in OVERLAYS
        for image in load(DEPLOY / "kubernetes" / "overlays" / overlay / "kustomization.yaml")["images"]
    }
    assert tags == overlays == {__version__}


def test_ray_accepts_its_cluster_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cluster = load(DEPLOY / "ray" / "cluster.yaml")
    util.validate_config(util.prepare_config(cluster))
    for place in cluster["file_mounts"].values():
        assert Path(place).exists()
    unknown: dict[str, Any] = {**cluster, "max_worker": 4}
    with pytest.raises(Exception, match="max_worker"):
        util.validate_config(util.prepare_config(unknown))


def test_the_kuberay_cluster_has_the_images_ray_version() -> None:
    cluster = load(DEPLOY / "ray" / "rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}


def _flink_job() -> list[str]:
    (pod,) = pods(load(DEPLOY / "beam" / "flink" / "embed.yaml"))
    return [*pod["containers"][0]["command"], *pod["containers"][0]["args"]]


def _known_options() -> set[str]:
    from apache_beam.options.pipeline_options import PipelineOptions

    return set(PipelineOptions([]).get_all_options())
