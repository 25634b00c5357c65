"""An index of embeddings that were exported and imported equals the index of the run, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beam_jobs.exchange.export import export
from beam_jobs.exchange.import_run import import_embeddings
from indexer.build import build_index
from searchforge.artifacts.searcher import IMAGE_SEARCHER, INDEX, TEXT_SEARCHER
from tests.indexer.tiny_corpus import commit_embeddings, make_corpus


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_an_imported_export_gives_the_same_index(tmp_path: Path, format: Any) -> None:
    first, second = make_corpus(tmp_path / "first", 64), make_corpus(tmp_path / "second", 64)
    by_id = sorted(first.records, key=lambda record: record.id)
    commit_embeddings(first.workspace, by_id, "run")
    export(first.config, "run", format, tmp_path / "export")
    assert import_embeddings(second.config, [tmp_path / "export"], "tiny").id == "run"
    searchers = []
    for corpus in (first, second):
        id = build_index(corpus.config.model_copy(update={"data": first.config.data}), "run")["id"]
        folder = corpus.workspace.local("searchers", id)
        searchers.append({name: (folder / name).read_bytes() for name in (INDEX, TEXT_SEARCHER, IMAGE_SEARCHER)})
    assert searchers[0] == searchers[1]
