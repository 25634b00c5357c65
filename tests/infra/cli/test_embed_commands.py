"""The embedding commands, run through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.cli.summaries import hits
from searchforge.artifacts.workspace import Workspace
from serving_check.measurement.search import Hit
from tests.beam_jobs.photos import draw_photos, png
from tests.tiny_bundle import write_bundle, write_colour_bundle


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(str(tmp_path / "workspace"))
    write_bundle(workspace)
    return workspace


def test_a_corpus_is_estimated_embedded_extended_and_compacted(workspace: Workspace, tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos")
    common = ["--workspace", workspace.root]

    def run(*arguments: str) -> dict[str, object]:
        result = CliRunner().invoke(main, [*arguments, *common, "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, object] = json.loads(result.stdout)
        return found

    corpus = ["--corpus", str(photos)]
    assert run("estimate", *corpus, "--workers", "3")["items"] == 20
    first = run("embed", *corpus)
    (photos / "new.png").write_bytes(png(100))
    second = run("embed", *corpus)
    assert (second["embedded"], second["reused"], second["base"]) == (1, 20, first["id"])
    whole = run("compact", "--embeddings", str(second["id"]))
    assert (whole["inputs"], whole["embedded"], whole["reused"]) == (21, 0, 21)


def test_texts_are_embedded(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "workspace"))
    write_colour_bundle(workspace)
    (tmp_path / "texts.txt").write_text("a red house\na blue sea\n")
    arguments = ["embed", "--texts", "--corpus", str(tmp_path / "texts.txt"), "--workspace", workspace.root]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "2 texts: 2 embedded, 0 reused, 0 rejected" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "nowhere"], "corpus nowhere does not exist"),
        (["--corpus", ".", "--reuse-from", "unknown"], "embeddings/unknown is not in workspace"),
        (["--corpus", ".", "--set", "embed.backend=gpu"], "embed.backend"),
    ],
)
def test_a_wrong_option_is_one_message(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(draw_photos(tmp_path / "photos"))
    result = CliRunner().invoke(main, ["embed", "--workspace", workspace.root, *arguments])
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_a_hit_shows_its_text_without_control_characters() -> None:
    shown = hits([Hit("7", 0.5, {"text": "red\x1b[31m house"}), Hit("8", 0.4, {})])
    assert "red" in shown and "\x1b" not in shown
    assert shown.splitlines()[1].endswith("8")
