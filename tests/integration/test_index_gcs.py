"""Indexing on a Beam runner in a bucket needs no local copy of the embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.build import build_index
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from tests.indexer.tiny_corpus import commit_embeddings, make_corpus

pytestmark = pytest.mark.integration


def test_a_runner_needs_no_local_copy_of_the_embeddings(tmp_path: Path, bucket: str) -> None:
    local = make_corpus(tmp_path, count=60, data__captions=[])
    files = build_index(local.config, "corpus")["files"]
    remote = Workspace(f"{bucket}/workspace")
    bundle = local.workspace.local("encoders", "tiny")
    for path in bundle.iterdir():
        remote.storage.upload(path, f"encoders/tiny/{path.name}")
    commit_embeddings(remote, local.records)
    settings = {"workspace": remote.root, "index.runner": "DirectRunner", "data.captions": []}
    assert build_index(load_config(None, settings), "corpus")["files"] == files
    assert list((tmp_path / "cache").rglob("*.tfrecord")) == []
