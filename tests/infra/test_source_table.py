"""The source table maps the ids of an embedding run to images; it is built once, and later look-ups read no shard."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from infra import api
from infra.source_table import build_table, find_source, table_path
from searchforge.artifacts.manifest import Manifest
from searchforge.hashing import sha256_file
from tests.indexer.tiny_corpus import TinyCorpus, commit_embeddings, make_corpus
from tests.infra.forked import fork
from tests.opened_files import opened_files


@pytest.fixture
def corpus(tmp_path: Path) -> TinyCorpus:
    return make_corpus(tmp_path, 12)


def test_images_of_hits_are_found_without_reading_the_run_again(corpus: TinyCorpus) -> None:
    first, second = corpus.records[3], corpus.records[8]
    remote = dataclasses.replace(corpus.records[5], uri="gs://bucket/5.png")
    commit_embeddings(corpus.workspace, [first, remote, second], "some", 1)
    assert api.corpus_images(corpus.config, "some", {first.id}) == {first.id: Path(first.uri)}
    with opened_files(corpus.workspace.local("embeddings", "some")) as opened:
        images = api.corpus_images(corpus.config, "some", {second.id, remote.id, "unknown"})
    assert images == {second.id: Path(second.uri)}
    assert not [path for path in opened if path.suffix == ".tfrecord"]


def test_a_run_that_does_not_exist_has_no_images(corpus: TinyCorpus) -> None:
    assert api.corpus_images(corpus.config, "none", {"00001.png"}) == {}


def test_the_table_has_live_records_only(corpus: TinyCorpus) -> None:
    manifest = Manifest.model_validate(corpus.workspace.marker("embeddings", "corpus"))
    shard = manifest.shards[0].model_copy(update={"run": "corpus", "dead": (0, 2)})
    content = manifest.model_dump() | {"id": "later", "inputs": 4, "embedded": 4, "shards": [shard.model_dump()]}
    with corpus.workspace.create("embeddings", "later") as staging:
        staging.commit(content)
    path = build_table(corpus.workspace, "later")
    known = {record.id for record in corpus.records if find_source(path, record.id)}
    assert known == {record.id for number, record in enumerate(corpus.records[::2]) if number not in (0, 2)}


def test_racing_processes_build_one_table_despite_a_killed_one(corpus: TinyCorpus, tmp_path: Path) -> None:
    path = table_path(corpus.workspace, "corpus")
    path.with_suffix(".tmp").write_bytes(b"half a table")
    output = tmp_path / "output"
    racing = [fork(lambda: build_table(corpus.workspace, "corpus"), output) for _ in range(4)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in racing]
    assert codes == [0] * 4, output.read_text()
    for record in corpus.records:
        source = find_source(path, record.id)
        assert source and dataclasses.astuple(source) == (record.uri, "", sha256_file(Path(record.uri)))
    assert not path.with_suffix(".tmp").exists()
