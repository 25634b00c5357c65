"""Embedding of text corpora."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beam_jobs.embed_texts import embed_texts
from searchforge.artifacts.workspace import Workspace
from tests.beam_jobs.photos import embed_config, records
from tests.tiny_bundle import write_colour_bundle


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(str(tmp_path_factory.mktemp("workspace")))
    write_colour_bundle(workspace)
    return workspace


def test_lines_are_embedded(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("a red house\n\na blue sea\na red house\ngreen and blue\n")
    manifest = embed_texts(embed_config(workspace, source), "colours")
    assert (manifest.inputs, manifest.embedded, manifest.reused) == (4, 3, 1)
    found = records(workspace, manifest)
    assert {id: record.metadata["text"] for id, record in found.items()} == {
        "1": "a red house",
        "3": "a blue sea",
        "4": "a red house",
        "5": "green and blue",
    }
    np.testing.assert_allclose(found["5"].embedding, np.array([0, 1, 1]) / np.sqrt(2), atol=1e-6)


def test_a_line_that_moved_is_not_embedded_again(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("one red\ntwo blue\n")
    embed_texts(embed_config(workspace, source), "colours")
    source.write_text("a green start\none red\ntwo blue\n")
    manifest = embed_texts(embed_config(workspace, source), "colours")
    assert (manifest.inputs, manifest.embedded, manifest.reused) == (3, 1, 2)
    assert records(workspace, manifest)["3"].metadata["text"] == "two blue"


def test_columns_of_csv_and_keys_of_jsonl(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text,shelf\nx,"a red book",7\ny,,8\n')
    manifest = embed_texts(embed_config(workspace, tmp_path / "a.csv"), "colours")
    assert manifest.rejected_by_reason == {"empty": 1}
    assert records(workspace, manifest)["x"].metadata == {"text": "a red book", "shelf": "7"}
    (tmp_path / "b.jsonl").write_text('{"id": "x", "text": "a red book", "shelf": 7}\n')
    manifest = embed_texts(embed_config(workspace, tmp_path / "b.jsonl"), "colours")
    assert records(workspace, manifest)["x"].metadata == {"text": "a red book", "shelf": 7}
