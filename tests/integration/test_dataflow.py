"""Submission of a job to Dataflow from its separate environment, with local servers in place of Google's.

The Dataflow server accepts the job, runs the staged graph, and reports that the job is done. Files are on a Cloud
Storage server.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import apache_beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from beam_jobs.embed_images import embed_images
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from searchforge.storage.factory import open_storage
from tests.integration import environments
from tests.test_packaging import checkout  # noqa: F401  # a fixture
from tests.tiny_bundle import write_bundle

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "infra" / "deploy" / "beam" / "dataflow"
LOCK = ROOT / "infra" / "deploy" / "beam" / "dataflow.lock"
IMAGE = "example/searchforge-worker:1"
SUBMIT_SECONDS = 300


def _environment() -> Path:
    return environments.environment("dataflow", locked=(LOCK,))


FETCHES = (_environment,)


@pytest.fixture(scope="module")
def python() -> Path:
    """Returns the Python interpreter of an environment with infra/deploy/beam/dataflow.lock."""
    return _environment()


class _Dataflow(HTTPServer):
    """A stand-in for Dataflow: accepts a job, runs its graph in this process, and reports that it is done."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: list[dict[str, Any]] = []

    def run(self, job: dict[str, Any]) -> None:
        url = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
        folder, _, name = url.rpartition("/")
        graph = beam_runner_api_pb2.Pipeline.FromString(open_storage(folder).read(name))
        for environment in graph.components.environments.values():
            environment.urn = python_urns.EMBEDDED_PYTHON  # in place of the container
            environment.ClearField("payload")
            environment.ClearField("dependencies")
        FnApiRunner().run_via_runner_api(graph, PipelineOptions([])).wait_until_finish()
        self.jobs.append(job)


class _Handler(BaseHTTPRequestHandler):
    server: _Dataflow

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.run(job)
        self._answer({"id": "job-1", "name": job["name"], "currentState": "JOB_STATE_PENDING"})

    def do_GET(self) -> None:
        part = self.path.partition("?")[0].rpartition("/")[2]
        answers: dict[str, Any] = {"messages": {}, "metrics": {}}
        self._answer(answers.get(part, {"id": "job-1", "currentState": "JOB_STATE_DONE"}))

    def _answer(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def dataflow() -> Iterator[_Dataflow]:
    with _Dataflow() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def photos(bucket: str, tmp_path: Path) -> str:
    """Returns the URL of a dozen images in a bucket."""
    random = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(random.integers(0, 256, (10, 12, 3), np.uint8)).save(tmp_path / "image.png")
        open_storage(f"{bucket}/photos").upload(tmp_path / "image.png", f"{index:02d}.png")
    return f"{bucket}/photos"


@pytest.fixture
def workspaces(bucket: str) -> tuple[Workspace, Workspace]:
    """Returns two workspaces with the same encoder: for the direct runner and for Dataflow."""
    direct, remote = Workspace(f"{bucket}/direct"), Workspace(f"{bucket}/remote")
    for workspace in (direct, remote):
        write_bundle(workspace)
    return direct, remote


@pytest.mark.integration
def test_a_submitted_job_is_complete_and_its_graph_writes_the_same_bytes(
    bucket: str,
    photos: str,
    workspaces: tuple[Workspace, Workspace],
    dataflow: _Dataflow,
    python: Path,
    checkout: Path,  # noqa: F811
) -> None:
    direct, remote = workspaces
    job = ["-m", "beam_jobs.embed_images", "--workspace", remote.root, "--encoder", "tiny", "--corpus", photos]
    endpoint = [f"--dataflow_endpoint=http://localhost:{dataflow.server_port}", "--no_auth"]
    code = [f"--sdk_container_image={IMAGE}", f"--setup_file={checkout / 'setup.py'}"]
    _run(python, checkout, *job, "--shards", "2", "--runner", "DataflowRunner", *_google(bucket), *code, *endpoint)

    (submitted,) = dataflow.jobs
    (workers,) = submitted["environment"]["workerPools"]
    assert [image["containerImage"] for image in workers["sdkHarnessContainerImages"]] == [IMAGE]
    assert workers["autoscalingSettings"]["maxNumWorkers"] == 7
    shipped = {package["name"]: package["location"] for package in workers["packages"]}
    bucket_name, _, path = shipped["workflow.tar.gz"].removeprefix("storage.googleapis.com/").partition("/")
    assert f"gs://{bucket_name}" == bucket and open_storage(bucket).exists(path)

    config = load_config(None, {"workspace": direct.root, "corpus.source": photos, "embed.shards": 2})
    manifest = embed_images(config, "tiny")
    assert _shards(remote, manifest.id) == _shards(direct, manifest.id)


@pytest.mark.integration
def test_the_flex_template_stages_a_job_whose_shards_are_committed_by_the_next_run(
    bucket: str,
    photos: str,
    workspaces: tuple[Workspace, Workspace],
    dataflow: _Dataflow,
    python: Path,
    checkout: Path,  # noqa: F811
) -> None:
    direct, remote = workspaces
    metadata = json.loads((TEMPLATE / "metadata.json").read_text())
    values = {"workspace": remote.root, "encoder": "tiny", "corpus": photos, "shards": "2", "reuse_from": "none"}
    assert values.keys() == {parameter["name"] for parameter in metadata["parameters"]}
    for parameter in metadata["parameters"]:
        assert all(re.search(regex, values[parameter["name"]]) for regex in parameter.get("regexes", ()))

    launcher = [f"--template_location={bucket}/staged/job_object", f"--setup_file={checkout / 'setup.py'}"]
    program = checkout / TEMPLATE.relative_to(ROOT) / "template.py"
    parameters = [f"--{name}={value}" for name, value in values.items()]
    _run(python, checkout, str(program), *parameters, "--runner=DataflowRunner", *_google(bucket), *launcher)
    assert remote.ids("embeddings") == []

    dataflow.run(json.loads(open_storage(bucket).read("staged/job_object")))
    with remote.storage.snapshot("embeddings") as written_by_job:
        assert len([name for name in written_by_job.objects if name.endswith(".tfrecord")]) == 2
    written = []
    for workspace in (remote, direct):
        overrides = {"workspace": workspace.root, "corpus.source": photos, "embed.shards": 2}
        manifest = embed_images(load_config(None, overrides), "tiny")
        written.append(_shards(workspace, manifest.id))
    assert written[0] == written[1]


def _google(bucket: str) -> list[str]:
    return ["--project=a-project", "--region=europe-west1", f"--temp_location={bucket}/tmp", "--max_num_workers=7"]


def _run(python: Path, checkout: Path, *arguments: str) -> None:  # noqa: F811
    """Runs a program in a checkout without Google credentials."""
    variables = {"NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": str(checkout), "PYTHONPATH": str(checkout)}
    result = subprocess.run(
        [str(python), *arguments],
        cwd=checkout,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=SUBMIT_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]


def _shards(workspace: Workspace, run: str) -> dict[str, bytes]:
    folder = f"embeddings/{run}"
    names = [name for name in workspace.storage.list_files(folder) if name.endswith(".tfrecord")]
    assert names
    return {name: workspace.storage.read(f"{folder}/{name}") for name in names}


def test_submitter_and_workers_have_the_same_versions() -> None:
    """The worker image is built from requirements.lock; libraries that affect pickling must match."""
    pins = [
        dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", path.read_text(), re.MULTILINE))
        for path in (ROOT / "requirements.lock", LOCK)
    ]
    for name in ("apache-beam", "numpy", "pydantic"):
        assert pins[0].get(name) == pins[1].get(name), name
    dockerfile = (ROOT / "infra" / "deploy" / "beam" / "Dockerfile").read_text()
    assert re.findall(r"ARG BEAM=(.+)", dockerfile) == [apache_beam.__version__] == [pins[0]["apache-beam"]]
