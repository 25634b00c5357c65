"""The embedding job on job servers, with workers that have only the code that the job ships."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from searchforge.artifacts.workspace import Workspace
from tests.integration import beam_servers
from tests.test_packaging import checkout  # noqa: F401  # a fixture
from tests.tiny_bundle import write_bundle

pytestmark = pytest.mark.integration

FETCHES = (beam_servers.flink_class_path, beam_servers.boot_program)

ROOT = Path(__file__).resolve().parents[2]
JOB_SECONDS = 300


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with 20 images and a file that is not an image."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(random.integers(0, 256, (10, 12, 3), np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def direct(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns the files that the job writes without a job server."""
    return _embed(ROOT, tmp_path_factory.mktemp("direct"), photos)


@pytest.fixture(params=["local job service", "Flink job server"])
def job_endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "server"
    folder.mkdir()
    if request.param == "Flink job server":
        server = beam_servers.flink_job_server(beam_servers.flink_class_path(), folder)
    else:
        server = beam_servers.local_job_service(folder)
    with server as address:
        yield address


@pytest.fixture
def shipped(request: pytest.FixtureRequest, checkout: Path, tmp_path: Path) -> str:  # noqa: F811
    """Returns the option that ships the project: as a wheel with Flink, as in infra/deploy, else from a checkout."""
    if request.node.callspec.params["job_endpoint"] != "Flink job server":
        return f"--setup_file={checkout / 'setup.py'}"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path / "wheels"), str(checkout)], check=True)
    (wheel,) = (tmp_path / "wheels").iterdir()
    return f"--extra_package={wheel}"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[beam_servers.WorkerPool]:
    folder = tmp_path / "pool"
    folder.mkdir()
    with beam_servers.worker_pool(beam_servers.boot_program(), folder) as pool:
        yield pool


def test_workers_run_the_shipped_code_and_write_the_same_bytes(
    job_endpoint: str,
    shipped: str,
    pool: beam_servers.WorkerPool,
    checkout: Path,  # noqa: F811
    photos: Path,
    direct: dict[str, bytes],
    tmp_path: Path,
) -> None:
    assert _location_of_project(pool.python, tmp_path) == ""
    portable = [
        *("--runner", "PortableRunner", f"--job_endpoint={job_endpoint}"),
        *("--environment_type=EXTERNAL", f"--environment_config={pool.address}"),
        shipped,
    ]
    written = _embed(checkout, tmp_path / "portable", photos, *portable)
    assert _location_of_project(pool.python, tmp_path).startswith(str(pool.python.parent.parent))
    assert len(written) == 3
    assert written == direct


def test_the_submitting_process_can_run_the_workers(photos: Path, direct: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with beam_servers.local_job_service(folder) as address:
        loopback = ["--runner", "PortableRunner", f"--job_endpoint={address}", "--environment_type=LOOPBACK"]
        written = _embed(ROOT, tmp_path / "portable", photos, *loopback)
    assert written == direct


def test_an_unreachable_job_server_is_reported_without_a_traceback(photos: Path, tmp_path: Path) -> None:
    unreachable = ["--runner", "PortableRunner", "--job_endpoint=localhost:1", "--job_server_timeout=5"]
    result = _run(ROOT, tmp_path / "workspace", photos, *unreachable, "--environment_type=LOOPBACK")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "the Beam job failed: " in result.stderr and "run the command again" in result.stderr


def _embed(source: Path, root: Path, photos: Path, *options: str) -> dict[str, bytes]:
    """Embeds the photos into a fresh workspace; returns the shards and rejects by name.

    Args:
      source: Checkout from which the job is submitted.
    """
    result = _run(source, root, photos, *options)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (run,) = Workspace(str(root)).ids("embeddings")
    folder = root / "embeddings" / run
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tfrecord", ".jsonl")}


def _run(source: Path, root: Path, photos: Path, *options: str) -> subprocess.CompletedProcess[str]:
    write_bundle(Workspace(str(root)))
    job = [sys.executable, "-m", "beam_jobs.embed_images", "--workspace", str(root), "--encoder", "tiny"]
    corpus = ["--corpus", str(photos), "--shards", "2", "--set", "corpus.max_reject_fraction=0.1"]
    return subprocess.run(
        [*job, *corpus, *options], cwd=source, capture_output=True, text=True, timeout=JOB_SECONDS, check=False
    )


def _location_of_project(python: Path, folder: Path) -> str:
    """Returns the path from which a Python interpreter imports beam_jobs, or an empty string."""
    program = "import importlib.util as u; s = u.find_spec('beam_jobs'); print(s.origin if s else '')"
    result = subprocess.run([python, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()
