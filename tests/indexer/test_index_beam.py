"""Encoding with a Beam runner gives a byte-identical index."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from searchforge.artifacts.searcher import INDEX
from searchforge.config import Config
from searchforge.errors import JobError
from tests.indexer.tiny_corpus import TinyCorpus, commit_embeddings, make_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> TinyCorpus:
    corpus = make_corpus(tmp_path, count=60, data__captions=[])
    commit_embeddings(corpus.workspace, corpus.records, "five-shards", shards=5)
    return corpus


def test_the_direct_runner_writes_the_same_bytes_as_threads(
    corpus: TinyCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = build_index(corpus.config, "five-shards")
    assert "encoding: 60/60" in capsys.readouterr().err  # only threads report progress
    parts = _parts(corpus)
    assert len(parts) == 5
    shutil.rmtree(corpus.workspace.local("searchers", threads["id"]))
    shutil.rmtree(corpus.workspace.cache("parts"))
    beam = build_index(_with(corpus.config, runner="DirectRunner"), "five-shards")
    assert "encoding:" not in capsys.readouterr().err
    assert INDEX in beam["files"]
    assert beam["files"] == threads["files"]
    assert _parts(corpus) == parts


def test_an_unknown_runner_fails_the_job(corpus: TinyCorpus) -> None:
    with pytest.raises(JobError, match=r"the Beam job failed: .*NoSuchRunner"):
        build_index(_with(corpus.config, runner="NoSuchRunner"), "five-shards")
    assert corpus.workspace.ids("searchers") == []
    assert list((Path(corpus.workspace.root) / ".staging").iterdir()) == []


def _parts(corpus: TinyCorpus) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in corpus.workspace.cache("parts").glob("*/*")}


def _with(config: Config, **settings: Any) -> Config:
    return config.model_copy(update={"index": config.index.model_copy(update=settings)})
