"""A job is submitted to Dataflow from an environment of its own, as a user does it, up to Google's service.

In its place a server on localhost takes the job, runs the graph that was staged for it, and says that it is done. Files
lie on a Cloud Storage server on localhost.
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
    """The Python of an environment with infra/deploy/beam/dataflow.lock."""
    return _environment()


class _Dataflow(HTTPServer):
    """The border to Google: takes a job, runs its graph in this process, and answers that it is done."""

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
        """Says nothing."""


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
    """A dozen images in a bucket."""
    random = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(random.integers(0, 256, (10, 12, 3), np.uint8)).save(tmp_path / "image.png")
        open_storage(f"{bucket}/photos").upload(tmp_path / "image.png", f"{index:02d}.png")
    return f"{bucket}/photos"


@pytest.fixture
def workspaces(bucket: str) -> tuple[Workspace, Workspace]:
    """Two workspaces in a bucket with the same encoder."""
    here, there = Workspace(f"{bucket}/here"), Workspace(f"{bucket}/there")
    for workspace in (here, there):
        write_bundle(workspace)
    return here, there


@pytest.mark.integration
def test_a_submitted_job_is_complete_and_its_graph_writes_the_same_bytes(
    bucket: str,
    photos: str,
    workspaces: tuple[Workspace, Workspace],
    dataflow: _Dataflow,
    python: Path,
    checkout: Path,  # noqa: F811
) -> None:
    here, there = workspaces
    job = ["-m", "beam_jobs.embed_images", "--workspace", there.root, "--encoder", "tiny", "--corpus", photos]
    border = [f"--dataflow_endpoint=http://localhost:{dataflow.server_port}", "--no_auth"]
    code = [f"--sdk_container_image={IMAGE}", f"--setup_file={checkout / 'setup.py'}"]
    _run(python, checkout, *job, "--shards", "2", "--runner", "DataflowRunner", *_google(bucket), *code, *border)

    (sent,) = dataflow.jobs
    (workers,) = sent["environment"]["workerPools"]
    assert [image["containerImage"] for image in workers["sdkHarnessContainerImages"]] == [IMAGE]
    assert workers["autoscalingSettings"]["maxNumWorkers"] == 7
    shipped = {package["name"]: package["location"] for package in workers["packages"]}
    bucket_name, _, path = shipped["workflow.tar.gz"].removeprefix("storage.googleapis.com/").partition("/")
    assert f"gs://{bucket_name}" == bucket and open_storage(bucket).exists(path)

    config = load_config(None, {"workspace": here.root, "corpus.source": photos, "embed.shards": 2})
    manifest = embed_images(config, "tiny")
    assert _shards(there, manifest.id) == _shards(here, manifest.id)


@pytest.mark.integration
def test_the_flex_template_stages_a_job_whose_shards_are_committed_by_the_next_run(
    bucket: str,
    photos: str,
    workspaces: tuple[Workspace, Workspace],
    dataflow: _Dataflow,
    python: Path,
    checkout: Path,  # noqa: F811
) -> None:
    here, there = workspaces
    metadata = json.loads((TEMPLATE / "metadata.json").read_text())
    given = {"workspace": there.root, "encoder": "tiny", "corpus": photos, "shards": "2", "reuse_from": "none"}
    assert given.keys() == {parameter["name"] for parameter in metadata["parameters"]}
    for parameter in metadata["parameters"]:
        assert all(re.search(regex, given[parameter["name"]]) for regex in parameter.get("regexes", ()))

    launcher = [f"--template_location={bucket}/staged/job_object", f"--setup_file={checkout / 'setup.py'}"]
    program = checkout / TEMPLATE.relative_to(ROOT) / "template.py"
    parameters = [f"--{name}={value}" for name, value in given.items()]
    _run(python, checkout, str(program), *parameters, "--runner=DataflowRunner", *_google(bucket), *launcher)
    assert there.ids("embeddings") == []

    dataflow.run(json.loads(open_storage(bucket).read("staged/job_object")))
    with there.storage.snapshot("embeddings") as written_by_job:
        assert len([name for name in written_by_job.objects if name.endswith(".tfrecord")]) == 2
    written = []
    for workspace in (there, here):
        overrides = {"workspace": workspace.root, "corpus.source": photos, "embed.shards": 2}
        manifest = embed_images(load_config(None, overrides), "tiny")
        written.append(_shards(workspace, manifest.id))
    assert written[0] == written[1]


def _google(bucket: str) -> list[str]:
    return ["--project=a-project", "--region=europe-west1", f"--temp_location={bucket}/tmp", "--max_num_workers=7"]


def _run(python: Path, checkout: Path, *arguments: str) -> None:  # noqa: F811
    """Runs a program as a user without credentials does, in a checkout."""
    nobody = {"NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": str(checkout), "PYTHONPATH": str(checkout)}
    result = subprocess.run(
        [str(python), *arguments],
        cwd=checkout,
        env={**os.environ, **nobody},
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


def test_both_sides_of_a_job_have_the_same_versions() -> None:
    """The image is built from requirements.lock; what the graph is pickled with is alike in both."""
    pins = [
        dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", path.read_text(), re.MULTILINE))
        for path in (ROOT / "requirements.lock", LOCK)
    ]
    for name in ("apache-beam", "numpy", "pydantic"):
        assert pins[0].get(name) == pins[1].get(name), name
    dockerfile = (ROOT / "infra" / "deploy" / "beam" / "Dockerfile").read_text()
    assert re.findall(r"ARG BEAM=(.+)", dockerfile) == [apache_beam.__version__] == [pins[0]["apache-beam"]]
