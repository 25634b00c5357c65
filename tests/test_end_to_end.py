"""All stages with their real components on a small synthetic corpus, in a run that is killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.demo.scenes import write_scenes
from searchforge.artifacts.workspace import Workspace

SCENES = 120
VALUES = {
    "train.text_tower": "pypi:minilm-l6@2",
    "train.text_quantization": "float16",
    "train.epochs": 8,
    "train.batch_size": 100,
    "train.ensemble_size": 1,
    "train.views": 1,
    "index.queries": 400,
    "check.queries": 100,
    "check.images": 20,
    "check.min_recall_at_10": 0.8,
}
SETTINGS = tuple(part for key, value in VALUES.items() for part in ("--set", f"{key}={value}"))
STAGES = ("train", "embed", "index", "check")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_scenes(folder, SCENES)
    (folder / "images" / "broken.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def workspace(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Returns a workspace with a release, from a run that was killed once after training."""
    return _killed_run(("embed",), corpus, tmp_path_factory.mktemp("workspace"))


def _command(corpus: Path, workspace: Workspace) -> list[str]:
    data = ("--captions", str(corpus / "captions.json"), "--images", str(corpus / "images"))
    return [sys.executable, "-m", "infra", "run", *data, "--workspace", workspace.root, *SETTINGS]


def _run_until(line: str, corpus: Path, workspace: Workspace) -> None:
    """Runs the command, and kills it and all its processes once it has logged `line` and started the stage."""
    process = subprocess.Popen(
        _command(corpus, workspace),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    logged = []
    for text in process.stderr:
        logged.append(text)
        if line in text:
            break
    else:
        pytest.fail(f"{line!r} was never logged: {''.join(logged)}")
    process.stderr.readline()  # the stage's first own message
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def _killed_run(stages: Sequence[str], corpus: Path, folder: Path) -> Workspace:
    """Returns the workspace of a run that was killed once in each of these stages and then finished."""
    workspace = Workspace(str(folder))
    for stage in stages:
        _run_until(f"] {stage}", corpus, workspace)
        assert workspace.ids("releases") == []
    finished = subprocess.run(_command(corpus, workspace), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return workspace


def _assert_one_verified_release(workspace: Workspace) -> None:
    for kind in ("encoders", "embeddings", "searchers", "checks", "releases"):
        assert len(workspace.ids(kind)) == 1, kind  # type: ignore[arg-type]
    report = workspace.marker("checks", workspace.ids("checks")[0])
    assert report["passed"] and all(gate["passed"] for gate in report["gates"])


def _assert_counts_add_up(workspace: Workspace) -> None:
    manifest = workspace.marker("embeddings", workspace.ids("embeddings")[0])
    assert (manifest["inputs"], manifest["embedded"]) == (SCENES + 1, SCENES)
    assert manifest["rejected_by_reason"] == {"not_an_image": 1}


def test_a_killed_run_ends_with_one_verified_release(workspace: Workspace) -> None:
    _assert_one_verified_release(workspace)


def test_the_counts_add_up(workspace: Workspace) -> None:
    _assert_counts_add_up(workspace)


@pytest.mark.proof
def test_a_run_that_is_killed_in_every_stage_ends_with_one_verified_release(corpus: Path, tmp_path: Path) -> None:
    workspace = _killed_run(STAGES, corpus, tmp_path)
    _assert_one_verified_release(workspace)
    _assert_counts_add_up(workspace)


def test_every_artifact_has_the_same_fingerprint(workspace: Workspace) -> None:
    markers = [
        workspace.marker(kind, workspace.ids(kind)[0])  # type: ignore[arg-type]
        for kind in ("encoders", "embeddings", "searchers", "checks", "releases")
    ]
    assert len({marker["fingerprint"] for marker in markers}) == 1


def test_heldout_captions_retrieve_their_image(workspace: Workspace) -> None:
    figures = workspace.marker("releases", workspace.ids("releases")[0])["figures"]
    by_chance = 10 / SCENES
    assert figures["r_at_10"] > 3 * by_chance
    assert figures["images"] == SCENES


def test_the_published_file_answers_text_and_image_queries(workspace: Workspace, corpus: Path) -> None:
    image = corpus / "images" / "scene-00007.jpg"
    for query, k in (("a red house on a sandy beach", 5), (str(image), 3)):
        arguments = ["search", query, "--workspace", workspace.root, "-k", str(k), "--json"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        hits = json.loads(result.stdout)
        assert len({hit["id"] for hit in hits}) == k
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert hits[0]["id"] == image.name


def test_running_again_changes_nothing(workspace: Workspace, corpus: Path) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in Path(workspace.root).rglob("*") if path.is_file()}

    before = state()
    again = subprocess.run(_command(corpus, workspace), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert state() == before


def test_a_failed_gate_publishes_nothing_and_exits_1(workspace: Workspace) -> None:
    live = workspace.storage.read("releases/CURRENT.json")
    settings = ["--set", "check.max_bytes_per_image=1", "--set", "check.queries=20", "--set", "check.images=10"]
    result = CliRunner().invoke(main, ["check", "--workspace", workspace.root, *settings])
    assert result.exit_code == 1
    assert "bytes_per_image: " in result.output and "above the maximum of 1\n" in result.output
    failed = next(id for id in workspace.ids("checks") if not workspace.marker("checks", id)["passed"])
    result = CliRunner().invoke(main, ["publish", "--workspace", workspace.root, "--check", failed])
    assert result.exit_code == 1
    assert workspace.storage.read("releases/CURRENT.json") == live
