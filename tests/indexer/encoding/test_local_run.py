"""Encoded shards in the cache are kept while a build may need them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.corpus.shards import open_corpus
from indexer.encoding.local_run import encode_corpus
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import IndexConfig
from tests.indexer.shards import records, workspace_with_encoder
from tests.indexer.tiny_corpus import DIM, commit_embeddings

DAY = 24 * 3600


class SignQuantizer:
    """Quantizer of two partitions and one block of two dimensions that calls a function whenever it encodes."""

    def __init__(self, id: str, on_encode: Callable[[], object] = lambda: None) -> None:
        self.id, self._on_encode = id, on_encode
        self.transform = np.eye(DIM, dtype=np.float32)
        self.centroids = np.stack([np.ones(DIM), -np.ones(DIM)]).astype(np.float32)
        self.codebooks = (np.zeros((256, DIM), np.float32),)

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._on_encode()
        return (vectors[:, 0] < 0).astype(np.uint32), np.zeros((len(vectors), 1), np.uint8)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with the embeddings of two corpora, of two shards each."""
    workspace = workspace_with_encoder(tmp_path)
    items = records(80)
    for id, some in (("one", items[:40]), ("other", items[40:])):
        commit_embeddings(workspace, some, id, shards=2)
    return workspace


def encode(workspace: Workspace, embeddings: str, quantizer: Any) -> int:
    """Encodes a corpus; returns its number of items."""
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    shards = open_corpus(workspace, manifest)
    metadata = Path(workspace.root, f"metadata-{embeddings}")
    return len(encode_corpus(workspace, manifest, shards, quantizer, IndexConfig(), 1, metadata).codes)


def encoded(workspace: Workspace, quantizer: str) -> list[Path]:
    return sorted(workspace.cache(f"parts/{quantizer}").iterdir())


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 2 * DAY,) * 2)


@pytest.mark.parametrize("quantizer", ["same", "different"])
def test_a_build_keeps_the_encoded_shards_that_a_concurrent_build_needs(workspace: Workspace, quantizer: str) -> None:
    assert encode(workspace, "one", SignQuantizer("same")) == 40
    folder = encoded(workspace, "same")[0].parent
    encoded(workspace, "same")[1].unlink()
    for path in (*encoded(workspace, "same"), folder):
        make_old(path)
    during = SignQuantizer("same", lambda: encode(workspace, "other", SignQuantizer(quantizer)))
    assert encode(workspace, "one", during) == 40


def test_encoded_shards_that_left_the_corpus_are_deleted_after_a_day(workspace: Workspace) -> None:
    encode(workspace, "one", SignQuantizer("q"))
    old = encoded(workspace, "q")
    encode(workspace, "other", SignQuantizer("q"))
    assert len(encoded(workspace, "q")) == 4
    for path in old:
        make_old(path)
    encode(workspace, "other", SignQuantizer("q"))
    assert len(encoded(workspace, "q")) == 2 and not {*old} & {*encoded(workspace, "q")}
