"""Scans a corpus once: rejects invalid records, draws a sample and finds the exact nearest neighbors of queries."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled
from indexer.corpus.shard_reader import read_shard
from indexer.corpus.shards import Shard, map_in_order, require_unique_ids, require_valid_records
from searchforge import progress

SCORE_TOLERANCE = 1e-6
"""Maximum difference of exact scores at which items count as equally good, for example copies of an image."""

ROWS = 2048
"""Number of records whose scores are computed at once."""


@dataclass(frozen=True)
class ExactNeighbors:
    """Exact nearest neighbors of queries among full-precision embeddings.

    Attributes:
      items: [m, k] int64, row numbers among the live records in shard order, best first; ties are in row order. Padded
        with -1 if the corpus has fewer than k items.
      scores: [m, k] float32, dot products; minus infinity for padding.
      vectors: [m, k, dim] float32, embeddings of the items.
    """

    items: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]

    def rows(self, chosen: slice) -> ExactNeighbors:
        """Returns the neighbors of some of the queries."""
        return ExactNeighbors(self.items[chosen], self.scores[chosen], self.vectors[chosen])

    def recalls(self, found: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
        """Returns recall@k [m] float64 of each query: the share of its exact top k among the first k items found.

        Any of these neighbors that scores as well as the k-th counts as one of the top k.

        Args:
          found: [m, any] int64, best first, without repetitions; padded with -1.
          k: Number of hits; reduced to the number of neighbors if that is smaller.
        """
        k = max(1, min(k, int(np.sum(self.items >= 0, axis=1).max(initial=0))))
        relevant = (self.scores >= self.scores[:, k - 1 : k] - SCORE_TOLERANCE) & (self.items >= 0)
        hits = (found[:, :k, None] == np.where(relevant, self.items, -2)[:, None, :]).any(axis=2)
        recalls: npt.NDArray[np.float64] = hits.sum(axis=1) / k
        return recalls


@dataclass(frozen=True)
class CorpusScan:
    """Result of a scan.

    Attributes:
      sample: [min(count, items), dim] float32, a uniform sample that depends on the ids only, not on the sharding.
      neighbors: Exact nearest neighbors of the queries.
      metadata_bytes: Total size of all items' metadata.
    """

    sample: npt.NDArray[np.float32]
    neighbors: ExactNeighbors
    metadata_bytes: int


def scan_corpus(
    shards: Sequence[Shard],
    dim: int,
    count: int,
    seed: int,
    queries: npt.NDArray[np.float32],
    k: int,
    threads: int = 1,
    rows: int = ROWS,
) -> CorpusScan:
    """Reads a whole corpus once.

    The sample consists of the `count` live records with the smallest keyed hash of their id, in the order of that hash.
    Memory holds up to three times the sample while it is drawn.

    Args:
      dim: Dimension of the embeddings.
      count: Size of the sample.
      queries: [m, dim] float32; may be empty.
      k: Number of neighbors per query, at least 1.
      threads: Number of shards read concurrently.
      rows: Number of records whose scores each thread computes at once.

    Raises:
      UsageError: A live vector is not finite, not of length 1 or not of `dim` dimensions, metadata has no JSON form for
        the device, or an id occurs twice.
      JobError: A shard is damaged.
    """
    order: list[npt.NDArray[np.uint64]] = []
    hashes, vectors = np.empty(2 * count, np.uint64), np.empty((2 * count, dim), np.float32)
    held, largest = 0, np.uint64(2**64 - 1)
    search = _ExactSearch(queries, k, rows)
    first = metadata_bytes = 0
    with progress.track("scanning the corpus", sum(info.live for info, _ in shards)) as advance:
        found = map_in_order(functools.partial(_read, dim, count, seed, search), shards, threads)
        for (info, _), (keys, drawn, drawn_vectors, best, size) in zip(shards, found, strict=True):
            order.append(keys)
            metadata_bytes += size
            below = np.flatnonzero(drawn <= largest)
            if held + len(below) > 2 * count:
                smallest = _smallest(hashes[:held], count)
                held, largest = len(smallest), hashes[smallest].max()
                hashes[:held], vectors[:held] = hashes[smallest], vectors[smallest]
            end = held + len(below)
            hashes[held:end], vectors[held:end] = drawn[below], drawn_vectors[below]
            held = end
            search.add(best, first)
            first += info.live
            advance(info.live)
    require_unique_ids(order, shards, dim)
    sample = vectors[np.argsort(hashes[:held], kind="stable")[:count]]
    return CorpusScan(sample, search.neighbors(), metadata_bytes)


def exact_search(queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int) -> ExactNeighbors:
    """Returns the exact k nearest of vectors [n, dim] for each query [m, dim]; items are row numbers."""
    search = _ExactSearch(queries, k, ROWS)
    search.add(search.find(vectors), 0)
    return search.neighbors()


@dataclass(frozen=True)
class _Best:
    """Best records of one shard that may be among the best of the corpus.

    Attributes:
      scores: [m, k] float32, descending; minus infinity for padding.
      indices: [m, k] int64, index of each record in `rows` and `vectors`; undefined for padding.
      rows: [n] int64, row numbers among the shard's live records.
      vectors: [n, dim] float32.
    """

    scores: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


class _ExactSearch:
    """Keeps the best items of every query, shard by shard.

    A matrix product selects candidates. Their scores are then computed one by one, so that a score does not depend on
    a vector's position in a matrix: copies of an image score equally.
    """

    def __init__(self, queries: npt.NDArray[np.float32], k: int, rows: int) -> None:
        self._rows = rows
        self._queries = np.ascontiguousarray(queries, np.float32)
        count, dim = self._queries.shape
        # At least twice the rounding error of the dot product of a query and a vector of length 1.
        norms = np.linalg.norm(self._queries, axis=1)
        self._margins = ((dim + 4) * np.finfo(np.float32).eps * norms).astype(np.float32)
        self._thresholds = np.full(count, -np.inf, np.float32)
        self._scores = np.full((count, k), -np.inf, np.float32)
        self._slots = np.tile(np.arange(k), (count, 1))
        # Items and vectors are indexed by slot, so that they need not move.
        self._items = np.full((count, k), -1, np.int64)
        self._vectors = np.zeros((count, k, dim), np.float32)

    def find(self, vectors: npt.NDArray[np.float32]) -> _Best:
        """Returns the best of a shard's live records [n, dim] float32; thread-safe."""
        scores = np.full(self._scores.shape, -np.inf, np.float32)
        rows = np.full(self._scores.shape, -1, np.int64)
        for start in range(0, len(vectors) if len(self._queries) else 0, self._rows):
            block = vectors[start : start + self._rows]
            # Thresholds may be stale while other threads run. They only rise, so at worst more records are selected.
            _select(self._queries @ block.T, self._margins, self._thresholds, self._queries, block, start, scores, rows)
        chosen, positions = np.unique(rows[rows >= 0], return_inverse=True)
        indices = np.zeros(rows.shape, np.int64)
        indices[rows >= 0] = positions
        return _Best(scores, indices, chosen, vectors[chosen])

    def add(self, best: _Best, first: int) -> None:
        """Merges the best of a shard whose first live record has number `first`; shards must be added in order."""
        items = first + best.rows
        _merge(best.scores, best.indices, items, best.vectors, self._scores, self._slots, self._items, self._vectors)
        self._thresholds = self._scores[:, -1].copy()

    def neighbors(self) -> ExactNeighbors:
        """Returns the result; the search must not be used afterwards."""
        items = np.take_along_axis(self._items, self._slots, axis=1)
        for vectors, slots in zip(self._vectors, self._slots, strict=True):  # in place, as they are most of the memory
            vectors[:] = vectors[slots]
        return ExactNeighbors(items, self._scores, self._vectors)


def _read(
    dim: int, count: int, seed: int, search: _ExactSearch, shard: Shard
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.float32], _Best, int]:
    """Returns a shard's order keys, hashes and vectors of sample candidates, best records and metadata bytes."""
    info, path = shard
    records = read_shard(path, dim)
    require_valid_records(records.faults, len(records), info.dead, path.name)
    live = np.delete(np.arange(len(records)), info.dead)
    hashes = _keyed_hash(records.order_keys[live], seed)
    smallest = _smallest(hashes, count)
    vectors = records.vectors[live] if info.dead else records.vectors
    size = int((records.metadata.ends[live] - records.metadata.starts[live]).sum())
    return records.order_keys, hashes[smallest], vectors[smallest], search.find(vectors), size


def _smallest(values: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.int64]:
    return np.argpartition(values, count - 1)[:count] if count < len(values) else np.arange(len(values))


def _keyed_hash(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Hashes keys by SplitMix64's finalizer, a bijection.

    Steele et al. 2014, "Fast splittable pseudorandom number generators".
    """
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


@compiled
def _select(
    rough: npt.NDArray[np.float32],
    margins: npt.NDArray[np.float32],
    thresholds: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
    first: int,
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
) -> None:
    """Inserts the vectors [n, dim] that score above the threshold and among the best k of the shard so far.

    Args:
      rough: [m, n] float32, approximate scores, each off by less than its query's margin.
      first: Row number of the first vector.
      scores: [m, k] float32, updated.
      rows: [m, k] int64, updated.
    """
    for query in range(len(rough)):
        limit = max(thresholds[query], scores[query, -1])
        bar = limit - margins[query]
        for row in range(rough.shape[1]):
            if rough[query, row] > bar:
                score = _dot(queries[query], vectors[row])
                if score > limit:
                    _insert(score, first + row, scores[query], rows[query])
                    limit = max(thresholds[query], scores[query, -1])
                    bar = limit - margins[query]


@compiled
def _merge(
    scores: npt.NDArray[np.float32],
    indices: npt.NDArray[np.int64],
    items: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.float32],
    best_scores: npt.NDArray[np.float32],
    best_slots: npt.NDArray[np.int64],
    best_items: npt.NDArray[np.int64],
    best_vectors: npt.NDArray[np.float32],
) -> None:
    """Merges the best of a shard (see _Best) into those of the corpus; a dropped item frees its slot."""
    for query in range(len(scores)):
        for i in range(scores.shape[1]):
            if scores[query, i] <= best_scores[query, -1]:
                break
            slot, index = best_slots[query, -1], indices[query, i]
            _insert(scores[query, i], slot, best_scores[query], best_slots[query])
            best_items[query, slot] = items[index]
            best_vectors[query, slot] = vectors[index]


@compiled
def _insert(score: np.float32, value: int, scores: npt.NDArray[np.float32], values: npt.NDArray[np.int64]) -> None:
    """Inserts a score greater than the last one of [k] in descending order, after equal ones."""
    position = len(scores) - 1
    while position > 0 and score > scores[position - 1]:
        scores[position], values[position] = scores[position - 1], values[position - 1]
        position -= 1
    scores[position], values[position] = score, value


@compiled(fastmath={"reassoc"})
def _dot(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> np.float32:
    """Returns the dot product, summed in float64 so that the summation order hardly ever affects the result."""
    total = np.float64(0)
    for i in range(len(a)):
        total += np.float64(a[i]) * np.float64(b[i])
    return np.float32(total)
