"""Builds reject faulty embeddings with a one-line error that names the item, and index unusual ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.build import build_index
from searchforge.artifacts.manifest import Manifest, ShardInfo
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.searcher import TEXT_SEARCHER
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.errors import JobError, SearchforgeError, UsageError
from serving_check.measurement.search import Searcher
from tests.indexer.shards import with_metadata_text
from tests.indexer.tiny_corpus import DIM, TinyCorpus, commit_embeddings, make_corpus

COUNT = 24
BAD = 5
"""Row of the faulty record, whose shard is one of two."""

LONG = "long and incompressible: " + np.random.default_rng(0).bytes(500_000).hex()
BINARY = {"x": '\x00\x01\x1f\x7f\u2028 "\\/\b\f\n\r\t \U0001f40e \uffff', "\x00": ["", "%s\x00", "M_1"]}


@dataclasses.dataclass(frozen=True)
class Written:
    """A record with a given serialized form."""

    payload: bytes

    def to_bytes(self) -> bytes:
        return self.payload


Change = Callable[[EmbeddingRecord], EmbeddingRecord | Written]


def _embedding(make: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Returns a function that changes a record's embedding."""
    return lambda record: dataclasses.replace(record, embedding=make(record.embedding).astype(np.float32))


def _one_is(value: float) -> Change:
    return _embedding(lambda vector: np.where(np.arange(DIM) == 3, np.float32(value), vector))


def _list_of(tag: bytes) -> Change:
    """Turns the embedding's 64 bytes into a list of another type; a single byte determines an Example's list type."""

    def change(record: EmbeddingRecord) -> Written:
        floats = b"\x12\x42\x0a\x40" + record.embedding.tobytes()
        written = record.to_bytes()
        assert written.count(floats) == 1
        return Written(written.replace(floats, tag + floats[1:]))

    return change


def _metadata_text(text: bytes) -> Change:
    return lambda record: Written(with_metadata_text(record, text))


BYTES_LIST, INT64_LIST = b"\x0a", b"\x1a"

FAULTS: dict[str, tuple[Change, type[SearchforgeError], str]] = {
    "not a number": (_one_is(np.nan), UsageError, r"'00005\.png' contains NaN or infinity"),
    "infinity": (_one_is(-np.inf), UsageError, r"'00005\.png' contains NaN or infinity"),
    "zeros": (_embedding(np.zeros_like), UsageError, r"'00005\.png' is all zeros"),
    "too long": (_embedding(lambda v: 2 * v), UsageError, r"'00005\.png' has length 2, expected 1"),
    "a little too short": (_embedding(lambda v: v * 0.99), UsageError, r"'00005\.png' has length 0\.99, expected 1"),
    "overflowing": (_embedding(lambda v: v * 3e38), UsageError, r"'00005\.png' has length 3e\+38, expected 1"),
    "fewer dimensions": (
        _embedding(lambda v: v[:8]),
        UsageError,
        r"'00005\.png' has 8 dimensions, but the manifest says 16",
    ),
    "no dimensions": (
        _embedding(lambda v: v[:0]),
        UsageError,
        r"'00005\.png' has 0 dimensions, but the manifest says 16",
    ),
    "float64": (
        _embedding(lambda v: v.astype(np.float64).view(np.float32)),
        UsageError,
        r"'00005\.png' has 32 dimensions, but the manifest says 16",
    ),
    "integers": (_list_of(INT64_LIST), JobError, r"record 2 of .*data-00001-of-00002\.tfrecord"),
    "metadata is a list": (
        lambda record: dataclasses.replace(record, metadata=[1, 2]),
        UsageError,
        r"metadata of '00005\.png' is '\[1, 2\]', expected a JSON object",
    ),
    "another id in metadata": (
        lambda record: dataclasses.replace(record, metadata={"id": "other"}),
        UsageError,
        r"metadata of '00005\.png' has its own key 'id' \('other'\)",
    ),
    "metadata is no JSON": (_metadata_text(b'{"x": nope}'), UsageError, r"metadata of '00005\.png' is not JSON"),
    "metadata contains NaN": (_metadata_text(b'{"x": NaN}'), UsageError, r"metadata of '00005\.png' is not JSON"),
    "half a character": (_metadata_text(b'{"x": "\\ud800"}'), UsageError, r"metadata of '00005\.png' is not JSON"),
    "metadata is not UTF-8": (_metadata_text(b'{"x": "\xff\xfe"}'), JobError, r"record 2 of .*data-00001-of-00002"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return make_corpus(tmp_path_factory.mktemp("bad"), count=COUNT, data__captions=[], index__reuse_from="none")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    """Searcher of a corpus with unusual records."""
    corpus = make_corpus(tmp_path_factory.mktemp("odd"), count=COUNT, data__captions=[])
    records: list[Any] = list(corpus.records)
    records[1] = dataclasses.replace(records[1], metadata={"text": LONG})
    records[2] = dataclasses.replace(records[2], metadata=BINARY)
    records[3] = _list_of(BYTES_LIST)(records[3])
    records[4] = dataclasses.replace(records[4], id='a "b"\\ \x00\n\u00e9\U0001f40e', metadata={})
    records[5] = dataclasses.replace(records[5], metadata={"deep": _nested(40), "big": 10**40, "small": -1.5e-300})
    commit_embeddings(corpus.workspace, records, "odd")
    report = build_index(corpus.config, "odd")
    with Searcher(corpus.workspace.local("searchers", report["id"]) / TEXT_SEARCHER) as searcher:
        yield searcher


@pytest.mark.parametrize("preset", ["best", "recipe2022"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_names_the_faulty_record(corpus: TinyCorpus, fault: str, preset: str) -> None:
    change, kind, message = FAULTS[fault]
    id = f"{preset}-{fault}".replace(" ", "-")
    commit_embeddings(corpus.workspace, _changed(corpus.records, change), id)
    assert_refused(_with(corpus.config, preset=preset), id, kind, message)


def test_a_duplicate_id_is_rejected(corpus: TinyCorpus) -> None:
    twin = dataclasses.replace(corpus.records[BAD], id="00002.png", uri="/elsewhere/2.png")
    commit_embeddings(corpus.workspace, [*corpus.records[:BAD], twin, *corpus.records[BAD + 1 :]], "twice")
    uri = re.escape(corpus.records[2].uri)
    assert_refused(
        corpus.config,
        "twice",
        UsageError,
        rf"'00002\.png' occurs twice in the corpus, from {uri} and from /elsewhere/2",
    )


def test_vectors_of_a_different_dimension_than_the_manifest_are_rejected(corpus: TinyCorpus) -> None:
    records = [dataclasses.replace(r, embedding=np.eye(8, dtype=np.float32)[0]) for r in corpus.records]
    commit_embeddings(corpus.workspace, records, "of-8")
    assert_refused(
        corpus.config,
        "of-8",
        UsageError,
        r"'00000\.png' has 8 dimensions, but the manifest says 16; .* \(12 of 12 records",
    )


def test_a_manifest_of_a_different_dimension_than_the_encoder_is_rejected(corpus: TinyCorpus) -> None:
    records = [dataclasses.replace(r, embedding=np.eye(8, dtype=np.float32)[0]) for r in corpus.records]
    commit_embeddings(corpus.workspace, records, "manifest-of-8", dim=8)
    assert_refused(corpus.config, "manifest-of-8", JobError, r"output is \[1, 16\], expected \[1, 8\]")


def test_shards_from_another_encoder_are_rejected(corpus: TinyCorpus) -> None:
    workspace = corpus.workspace
    runs = {
        "foreign": commit_embeddings(workspace, corpus.records[:10], "foreign", fingerprint="e" * 64),
        "own": commit_embeddings(workspace, corpus.records[10:], "own"),
    }
    _commit_on(workspace, runs["own"], "mixed", [_of(run, shard) for run in runs for shard in runs[run].shards])
    assert_refused(
        corpus.config,
        "mixed",
        UsageError,
        r"embeddings mixed are from encoder f{64}, .* embeddings foreign from encoder e{64}",
    )


def test_a_shard_from_a_deleted_run_is_an_error(corpus: TinyCorpus) -> None:
    own = commit_embeddings(corpus.workspace, corpus.records, "left")
    _commit_on(corpus.workspace, own, "orphan", [_of("gone", shard) for shard in own.shards])
    assert_refused(
        corpus.config, "orphan", JobError, r"embeddings gone, whose shards embeddings orphan reuse, are missing"
    )


def test_a_shard_with_a_flipped_bit_is_an_error(corpus: TinyCorpus) -> None:
    commit_embeddings(corpus.workspace, corpus.records, "flipped")
    path = corpus.workspace.local("embeddings", "flipped") / "data-00001-of-00002.tfrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert_refused(corpus.config, "flipped", JobError, r"data-00001-of-00002\.tfrecord has SHA-256")


@pytest.mark.parametrize("parameters", [{"partitions": COUNT + 1}, {"partitions": COUNT + 1, "preset": "recipe2022"}])
def test_fewer_vectors_than_partitions_are_rejected(corpus: TinyCorpus, parameters: dict[str, Any]) -> None:
    message = f"index.partitions is {COUNT + 1}, but the corpus has {COUNT} items"
    assert_refused(_with(corpus.config, **parameters), "corpus", UsageError, message)


def test_an_empty_corpus_is_rejected(corpus: TinyCorpus) -> None:
    commit_embeddings(corpus.workspace, [], "empty")
    assert_refused(corpus.config, "empty", UsageError, "embeddings empty contain no items")


def test_an_index_with_one_partition_per_vector_works(corpus: TinyCorpus) -> None:
    config = _with(corpus.config, partitions=COUNT, recall_at_10=None)
    with _searcher(corpus, build_index(config, "corpus")) as searcher:
        assert [searcher.search_text(f"w{i}", 1)[0].id for i in range(COUNT)] == [f"{i:05d}.png" for i in range(COUNT)]


@pytest.mark.parametrize("count", [1, 10])
def test_the_recipe_indexes_a_handful_of_vectors(corpus: TinyCorpus, count: int) -> None:
    commit_embeddings(corpus.workspace, corpus.records[:count], f"handful-{count}")
    report = build_index(_with(corpus.config, preset="recipe2022"), f"handful-{count}")
    with _searcher(corpus, report) as searcher:
        assert [searcher.search_text(f"w{i}", 1)[0].id for i in range(count)] == [f"{i:05d}.png" for i in range(count)]


def test_the_recipe_indexes_equal_vectors(corpus: TinyCorpus) -> None:
    same = [dataclasses.replace(record, embedding=corpus.records[0].embedding) for record in corpus.records]
    commit_embeddings(corpus.workspace, same, "same")
    report = build_index(_with(corpus.config, preset="recipe2022", partitions=2, partitions_searched=2), "same")
    with _searcher(corpus, report) as searcher:
        assert {hit.id for hit in searcher.search_text("w0", COUNT)} == {record.id for record in same}


def test_a_megabyte_of_metadata_is_returned_unchanged(odd: Searcher) -> None:
    hit = odd.search_text("w1", 1)[0]
    assert (hit.id, hit.metadata) == ("00001.png", {"text": LONG})


def test_metadata_with_control_characters_and_escapes_is_returned_unchanged(odd: Searcher) -> None:
    hit = odd.search_text("w2", 1)[0]
    assert (hit.id, hit.metadata) == ("00002.png", BINARY)


def test_an_embedding_stored_as_bytes_is_indexed(odd: Searcher) -> None:
    assert odd.search_text("w3", 1)[0].id == "00003.png"


def test_an_id_with_control_characters_and_escapes_is_returned_unchanged(odd: Searcher) -> None:
    assert odd.search_text("w4", 1)[0].id == 'a "b"\\ \x00\n\u00e9\U0001f40e'


def test_deep_metadata_and_large_numbers_are_returned_unchanged(odd: Searcher) -> None:
    expected = {"deep": _nested(40), "big": 10**40, "small": -1.5e-300}
    assert odd.search_text("w5", 1)[0].metadata == expected


def assert_refused(config: Config, id: str, kind: type[SearchforgeError], message: str) -> None:
    """Asserts that the build fails with a one-line error and leaves nothing behind."""
    root = Path(config.workspace)
    before = _artifacts(root)
    with pytest.raises(kind, match=message) as refused:
        build_index(config, id)
    assert "\n" not in str(refused.value)
    assert _artifacts(root) == before
    assert list((root / ".staging").iterdir()) == []


def _artifacts(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "searchers").iterdir()) if (root / "searchers").is_dir() else []


def _changed(records: Sequence[EmbeddingRecord], change: Change) -> list[Any]:
    return [change(record) if row == BAD else record for row, record in enumerate(records)]


def _with(config: Config, **settings: Any) -> Config:
    return config.model_copy(update={"index": config.index.model_copy(update=settings)})


def _searcher(corpus: TinyCorpus, report: dict[str, Any]) -> Searcher:
    return Searcher(corpus.workspace.local("searchers", report["id"]) / TEXT_SEARCHER)


def _of(run: str, shard: ShardInfo) -> ShardInfo:
    return shard.model_copy(update={"run": run})


def _commit_on(workspace: Workspace, like: Manifest, id: str, shards: Sequence[ShardInfo]) -> None:
    """Commits embeddings that consist of other runs' shards."""
    live = sum(shard.live for shard in shards)
    changed = {"id": id, "shards": tuple(shards), "inputs": live, "embedded": 0, "reused": live}
    with workspace.create("embeddings", id) as staging:
        staging.commit(like.model_copy(update=changed).model_dump())


def _nested(depth: int) -> dict[str, Any]:
    return {"a": _nested(depth - 1) if depth else {}}
