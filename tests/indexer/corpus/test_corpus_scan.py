"""A scan draws a uniform sample, finds exact nearest neighbors and rejects invalid corpora."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from indexer.corpus.corpus_scan import ROWS, SCORE_TOLERANCE, ExactNeighbors, scan_corpus
from indexer.corpus.shards import Shard
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.errors import JobError, UsageError
from tests.indexer.shards import records, write_shards
from tests.indexer.tiny_corpus import DIM
from tests.indexer.tiny_encoder import unit

NO_QUERIES = np.empty((0, DIM), np.float32)


def sample(shards: Sequence[Shard], count: int, seed: int, threads: int = 1) -> np.ndarray:
    return scan_corpus(shards, DIM, count, seed, NO_QUERIES, 1, threads).sample


def neighbors(
    shards: Sequence[Shard], queries: np.ndarray, k: int, threads: int = 1, rows: int = ROWS
) -> ExactNeighbors:
    return scan_corpus(shards, DIM, 1, 0, queries, k, threads, rows).neighbors


def some_queries(count: int) -> np.ndarray:
    return unit(np.random.default_rng(9).normal(size=(count, DIM)))


def near_duplicates(count: int) -> list[EmbeddingRecord]:
    """Returns records with many copies, and many near-copies whose first dimension is the next float32."""
    originals = np.array([record.embedding for record in records(count)])
    vectors = originals[np.random.default_rng(2).integers(count // 8, size=count)]
    vectors[::3, 0] = np.nextafter(vectors[::3, 0], np.float32(2))
    pairs = zip(records(count), vectors, strict=True)
    return [dataclasses.replace(record, embedding=vector) for record, vector in pairs]


def brute_force(
    items: Sequence[EmbeddingRecord], shards: int, dead: Sequence[str], queries: np.ndarray, k: int
) -> ExactNeighbors:
    """Sorts the scores of all live items, in the order of `write_shards`."""
    ordered = [record for shard in range(shards) for record in items[shard::shards] if record.id not in dead]
    vectors = np.array([record.embedding for record in ordered])
    scores = (queries.astype(np.float64)[:, None] * vectors).sum(axis=-1).astype(np.float32)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ExactNeighbors(best, np.take_along_axis(scores, best, axis=1), vectors[best])


def assert_same(found: ExactNeighbors, expected: ExactNeighbors) -> None:
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.vectors, expected.vectors)


def test_a_sample_depends_on_ids_and_seed_but_not_on_shards_or_threads(tmp_path: Path) -> None:
    items = records(500)
    expected = sample(write_shards(tmp_path / "a", items, 1), 20, seed=3)
    shuffled = random.Random(0).sample(items, len(items))
    for shards, threads in ((1, 1), (7, 1), (50, 3)):
        files = write_shards(tmp_path / f"{shards}", shuffled, shards)
        np.testing.assert_array_equal(sample(files, 20, seed=3, threads=threads), expected)
    other = sample(files, 20, seed=4)
    assert not np.array_equal(np.sort(other[:, 0]), np.sort(expected[:, 0]))
    # A larger sample begins with the smaller one.
    np.testing.assert_array_equal(sample(files, 60, seed=3)[:20], expected)


def test_a_sample_consists_of_distinct_live_records(tmp_path: Path) -> None:
    items = records(100)
    dead = [f"id{i}" for i in range(0, 100, 3)]
    drawn = sample(write_shards(tmp_path, items, 4, dead), 1_000, seed=0)
    live = np.array([record.embedding for record in items if record.id not in dead])
    assert drawn.shape == live.shape
    np.testing.assert_array_equal(np.sort(drawn, axis=0), np.sort(live, axis=0))
    # A smaller sample contains no dead record either.
    few = sample(write_shards(tmp_path, items, 4, dead), 10, seed=0)
    assert all((live == vector).all(axis=1).any() for vector in few)


def test_a_sample_is_uniform(tmp_path: Path) -> None:
    """Over many seeds, every record is drawn about equally often: 60 of 300 times, with a standard deviation of 7."""
    files = write_shards(tmp_path, records(50), 3)
    firsts = np.array([record.embedding[0] for record in records(50)])
    drawn = np.concatenate([sample(files, 10, seed)[:, 0] for seed in range(300)])
    counts = np.array([(drawn == first).sum() for first in firsts])
    assert counts.sum() == 3_000
    assert 30 < counts.min() <= counts.max() < 90


def test_different_ids_with_equal_order_keys_can_all_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.corpus.shard_reader.order_keys", lambda data, ids: np.full(len(ids), 7, np.uint64))
    assert len(sample(write_shards(tmp_path, records(), 2), 10, seed=0)) == 6


def duplicate(items: list[EmbeddingRecord]) -> None:
    items[4] = dataclasses.replace(items[4], id="id1")


def without_length(items: list[EmbeddingRecord]) -> None:
    items[1] = dataclasses.replace(items[1], embedding=np.full(DIM, np.nan, np.float32))


def with_own_id(items: list[EmbeddingRecord]) -> None:
    items[1] = dataclasses.replace(items[1], metadata={"id": "other"})


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (duplicate, r"id 'id1' occurs twice in the corpus, from /photos/(1|4).jpg and from /photos/(1|4).jpg"),
        (without_length, r"embedding of 'id1' contains NaN or infinity.* \(1 of 3 records of 1.tf"),
        (with_own_id, r"metadata of 'id1' has its own key 'id'.* \(1 of 3 records of 1.tf"),
    ],
)
def test_a_corpus_with_a_faulty_record_is_rejected_unless_the_record_is_dead(
    tmp_path: Path, damage: Callable[[list[EmbeddingRecord]], None], fault: str
) -> None:
    items = records()
    damage(items)
    with pytest.raises(UsageError, match=fault):
        sample(write_shards(tmp_path, items, 2), 10, seed=0)
    shards = write_shards(tmp_path, items, 2, dead=["id1"])
    found = scan_corpus(shards, DIM, 10, 0, some_queries(3), 10)
    assert len(found.sample) == sum(info.live for info, _ in shards)
    assert np.isfinite(found.sample).all()
    assert np.isfinite(found.neighbors.vectors).all()


def test_a_damaged_shard_is_an_error(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, records(), 2)
    shards[1][1].write_bytes(shards[1][1].read_bytes()[:-1])
    with pytest.raises(JobError, match=r"1.tfrecord: damaged TFRecord"):
        sample(shards, 10, seed=0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("shards", "k"), [(1, 10), (1, 1), (3, 100), (40, 10)])
def test_neighbors_equal_those_of_a_brute_force_search(tmp_path: Path, shards: int, k: int, threads: int) -> None:
    """Ties go to the first item, whether copies are in one block of a shard, in several, or in different shards."""
    items, queries = near_duplicates(400), some_queries(30)
    queries[0] = items[17].embedding
    dead = [f"id{i}" for i in range(0, 400, 7)]
    files = write_shards(tmp_path, items, shards, dead)
    expected = brute_force(items, shards, dead, queries, k)
    for rows in (ROWS, 13):
        assert_same(neighbors(files, queries, k, threads, rows), expected)


def test_zero_and_long_queries_have_neighbors(tmp_path: Path) -> None:
    items = records(50)
    queries = np.stack([np.zeros(DIM), 1e4 * some_queries(1)[0], 1e-4 * some_queries(1)[0]]).astype(np.float32)
    found = neighbors(write_shards(tmp_path, items, 3), queries, 5)
    assert_same(found, brute_force(items, 3, [], queries, 5))
    assert found.items[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threads", [1, 3])
def test_neighbors_are_padded_if_the_corpus_has_fewer_items(tmp_path: Path, threads: int) -> None:
    items, queries = records(7), some_queries(4)
    dead = ["id0", "id5"]  # one shard has only dead records, and some are empty
    found = neighbors(write_shards(tmp_path, items, 10, dead), queries, 8, threads)
    expected = brute_force(items, 10, dead, queries, 8)
    assert_same(ExactNeighbors(found.items[:, :5], found.scores[:, :5], found.vectors[:, :5]), expected)
    assert (found.items[:, 5:] == -1).all()
    assert (found.scores[:, 5:] == -np.inf).all()
    assert not found.vectors[:, 5:].any()


def test_a_corpus_without_live_records_has_no_neighbors(tmp_path: Path) -> None:
    for shards in ([], write_shards(tmp_path, records(1), 2, dead=["id0"])):
        found = scan_corpus(shards, DIM, 3, 0, some_queries(2), 4)
        assert found.sample.shape == (0, DIM)
        assert (found.neighbors.items == -1).all()


def test_without_queries_there_are_no_neighbors(tmp_path: Path) -> None:
    found = neighbors(write_shards(tmp_path, records(20), 2), NO_QUERIES, 5, threads=2)
    assert (found.items.shape, found.scores.shape, found.vectors.shape) == ((0, 5), (0, 5), (0, 5, DIM))
    assert found.recalls(np.empty((0, 10), np.int64), 5).shape == (0,)


def some_neighbors() -> ExactNeighbors:
    """Returns neighbors of two queries in a corpus of three items; the first query's last two neighbors tie."""
    scores = np.array([[0.9, 0.8, 0.8 - SCORE_TOLERANCE / 2, -np.inf], [0.9, 0.8, 0.7, -np.inf]], np.float32)
    return ExactNeighbors(np.array([[5, 2, 9, -1], [9, 5, 2, -1]]), scores, np.zeros((2, 4, DIM), np.float32))


@pytest.mark.parametrize(
    ("k", "found", "recalls"),
    [
        (1, [[5], [5]], [1, 0]),
        (2, [[2, 5], [5, 9]], [1, 1]),  # in any order
        (2, [[9, 5], [9, 2]], [1, 0.5]),  # a tie with the second counts as the second
        (2, [[2, 9], [2, 3]], [1, 0]),
        (2, [[3, 4, 5, 2], [3, 9, 5, 2]], [0, 0.5]),  # only the first two count
        (2, [[5], [-1]], [0.5, 0]),  # fewer hits
        (2, [[5, -1], [-1, -1]], [0.5, 0]),
        (4, [[2, 5, 9, -1], [9, -1, -1, -1]], [1, 1 / 3]),  # k is reduced to three items
        (10, [[2, 5, 9], [7, 5, 2]], [1, 2 / 3]),
    ],
)
def test_recall_is_the_share_of_the_exact_top_k_among_the_first_k_found(
    k: int, found: list[list[int]], recalls: list[float]
) -> None:
    np.testing.assert_allclose(some_neighbors().recalls(np.array(found), k), recalls)


def test_rows_selects_the_neighbors_of_some_queries() -> None:
    rest = some_neighbors().rows(slice(1, None))
    assert (rest.items.tolist(), len(rest.scores), len(rest.vectors)) == ([[9, 5, 2, -1]], 1, 1)
