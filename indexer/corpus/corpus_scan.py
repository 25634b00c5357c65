"""One pass over a corpus: refuses what must not be indexed, draws a sample, and finds the exact answers to queries."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from indexer.corpus.shard_reader import read_shard
from indexer.corpus.shards import Shard, map_in_order, require_distinct_ids, require_sound
from searchforge import progress

TIE = 1e-6
"""Items whose exact scores differ by less stand for each other: copies of an image, say."""

ROWS = 2048
"""Records whose scores are computed at once."""


@dataclass(frozen=True)
class Answers:
    """The exact best items of queries, over full-precision embeddings.

    Attributes:
      items: [m, k] int64, best first, of equal scores the one that came first: an item's number among the live records,
        in the order of the shards; -1 where the corpus has fewer than k.
      scores: [m, k] float32, dot products; minus infinity where there is no item.
      vectors: [m, k, dim] float32, the items' embeddings.
    """

    items: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]

    def rows(self, chosen: slice) -> Answers:
        """Returns the answers to some of the queries."""
        return Answers(self.items[chosen], self.scores[chosen], self.vectors[chosen])

    def recalls(self, found: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
        """Returns recall@k of each query [m] float64: the share of its exact top k among the first k items found.

        An item that scores as the k-th does counts as one of the top k, so long as it is among these answers.

        Args:
          found: [m, any] int64, best first, each item once; -1 where there is none.
          k: as many as there are answers, if that is fewer.
        """
        k = max(1, min(k, int(np.sum(self.items >= 0, axis=1).max(initial=0))))
        good = (self.scores >= self.scores[:, k - 1 : k] - TIE) & (self.items >= 0)
        hits = (found[:, :k, None] == np.where(good, self.items, -2)[:, None, :]).any(axis=2)
        recalls: npt.NDArray[np.float64] = hits.sum(axis=1) / k
        return recalls


@dataclass(frozen=True)
class Survey:
    """What one pass over a corpus found.

    Attributes:
      sample: [min(count, items), dim] float32, a uniform sample that depends on the items' ids only, not on shards.
      answers: to the queries.
      metadata_bytes: size of all items' metadata together.
    """

    sample: npt.NDArray[np.float32]
    answers: Answers
    metadata_bytes: int


def survey(
    shards: Sequence[Shard],
    dim: int,
    count: int,
    seed: int,
    queries: npt.NDArray[np.float32],
    k: int,
    threads: int = 1,
    rows: int = ROWS,
) -> Survey:
    """Reads a whole corpus once.

    The sample is the `count` live records with the smallest keyed hash of their id, in the order of that hash. Three
    times its size is held while it is drawn.

    Args:
      dim: of the embeddings.
      count: size of the sample.
      queries: [m, dim] float32; may be empty.
      k: answers of each query, at least 1.
      threads: shards that are read at a time.
      rows: records whose scores are computed at once, for each thread.

    Raises:
      UsageError: a live vector is not a finite one of length 1 and of `dim` dimensions, metadata cannot be JSON on the
        device, or an id is there twice.
      JobError: a shard is damaged.
    """
    order: list[npt.NDArray[np.uint64]] = []
    hashes, vectors = np.empty(2 * count, np.uint64), np.empty((2 * count, dim), np.float32)
    held, largest = 0, np.uint64(2**64 - 1)
    search = _ExactSearch(queries, k, rows)
    first = metadata_bytes = 0
    with progress.track("read the corpus", sum(info.live for info, _ in shards)) as advance:
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
    require_distinct_ids(order, shards, dim)
    sample = vectors[np.argsort(hashes[:held], kind="stable")[:count]]
    return Survey(sample, search.answers(), metadata_bytes)


def exact_search(queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int) -> Answers:
    """Returns the exact best k of vectors [n, dim] in memory for each query [m, dim]; items are row numbers."""
    search = _ExactSearch(queries, k, ROWS)
    search.add(search.find(vectors), 0)
    return search.answers()


@dataclass(frozen=True)
class _Best:
    """The best records of one shard, those that may be among the best of the corpus.

    Attributes:
      scores: [m, k] float32, descending; minus infinity where there is none.
      places: [m, k] int64, of each among `rows` and `vectors`; of no meaning where there is none.
      rows: [n] int64, among the live records.
      vectors: [n, dim] float32.
    """

    scores: npt.NDArray[np.float32]
    places: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


class _ExactSearch:
    """Keeps the best items of every query, shard by shard.

    A matrix product finds who comes into question; their scores are then computed one by one, so that they do not
    depend on where a vector stands in a matrix: copies of an image score alike.
    """

    def __init__(self, queries: npt.NDArray[np.float32], k: int, rows: int) -> None:
        self._rows = rows
        self._queries = np.ascontiguousarray(queries, np.float32)
        count, dim = self._queries.shape
        # At least twice what rounding can do to the product of a query and a vector of length 1.
        norms = np.linalg.norm(self._queries, axis=1)
        self._margins = ((dim + 4) * np.finfo(np.float32).eps * norms).astype(np.float32)
        self._thresholds = np.full(count, -np.inf, np.float32)
        self._scores = np.full((count, k), -np.inf, np.float32)
        self._slots = np.tile(np.arange(k), (count, 1))
        self._items = np.full((count, k), -1, np.int64)  # this and the vectors by slot, so that they need not move
        self._vectors = np.zeros((count, k, dim), np.float32)

    def find(self, vectors: npt.NDArray[np.float32]) -> _Best:
        """Returns the best of a shard's live records, [n, dim] float32; for any thread."""
        scores = np.full(self._scores.shape, -np.inf, np.float32)
        rows = np.full(self._scores.shape, -1, np.int64)
        for start in range(0, len(vectors) if len(self._queries) else 0, self._rows):
            block = vectors[start : start + self._rows]
            # Other threads' thresholds may be those of a moment ago: they only rise, so at worst more is found.
            _select(self._queries @ block.T, self._margins, self._thresholds, self._queries, block, start, scores, rows)
        chosen, places = np.unique(rows[rows >= 0], return_inverse=True)
        all_places = np.zeros(rows.shape, np.int64)
        all_places[rows >= 0] = places
        return _Best(scores, all_places, chosen, vectors[chosen])

    def add(self, best: _Best, first: int) -> None:
        """Takes over what is better; `first` is the number of the shard's first live record. Shards come in order."""
        items = first + best.rows
        _merge(best.scores, best.places, items, best.vectors, self._scores, self._slots, self._items, self._vectors)
        self._thresholds = self._scores[:, -1].copy()

    def answers(self) -> Answers:
        """Returns what was found; ends the search."""
        items = np.take_along_axis(self._items, self._slots, axis=1)
        for vectors, slots in zip(self._vectors, self._slots, strict=True):  # in place: they are the bulk
            vectors[:] = vectors[slots]
        return Answers(items, self._scores, self._vectors)


def _read(
    dim: int, count: int, seed: int, search: _ExactSearch, shard: Shard
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.float32], _Best, int]:
    """Returns a shard's order keys, hashes and vectors of what may be in the sample, answers, and size of metadata."""
    info, path = shard
    records = read_shard(path, dim)
    require_sound(records.faults, len(records), info.dead, path.name)
    live = np.delete(np.arange(len(records)), info.dead)
    hashes = _keyed_hash(records.order_keys[live], seed)
    smallest = _smallest(hashes, count)
    vectors = records.vectors[live] if info.dead else records.vectors
    size = int((records.metadata.ends[live] - records.metadata.starts[live]).sum())
    return records.order_keys, hashes[smallest], vectors[smallest], search.find(vectors), size


def _smallest(values: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.int64]:
    return np.argpartition(values, count - 1)[:count] if count < len(values) else np.arange(len(values))


def _keyed_hash(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele et al. 2014, "Fast splittable pseudorandom number generators"), a bijection."""
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


@numba.njit(cache=True, nogil=True)
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
    """Notes records [n, dim] whose score is above the threshold and among the best k of the shard so far.

    Args:
      rough: [m, n], the scores, each off by less than its query's margin.
      first: row of the first of the vectors.
      scores, rows: [m, k], changed.
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


@numba.njit(cache=True, nogil=True)
def _merge(
    scores: npt.NDArray[np.float32],
    places: npt.NDArray[np.int64],
    items: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.float32],
    best_scores: npt.NDArray[np.float32],
    best_slots: npt.NDArray[np.int64],
    best_items: npt.NDArray[np.int64],
    best_vectors: npt.NDArray[np.float32],
) -> None:
    """Takes the best of a shard (see _Best) into those of the corpus; who drops out leaves its slot."""
    for query in range(len(scores)):
        for i in range(scores.shape[1]):
            if scores[query, i] <= best_scores[query, -1]:
                break
            slot, place = best_slots[query, -1], places[query, i]
            _insert(scores[query, i], slot, best_scores[query], best_slots[query])
            best_items[query, slot] = items[place]
            best_vectors[query, slot] = vectors[place]


@numba.njit(cache=True, nogil=True)
def _insert(score: np.float32, value: int, scores: npt.NDArray[np.float32], values: npt.NDArray[np.int64]) -> None:
    """Puts a score that is above the last one [k] at its place in descending order, behind its equals."""
    place = len(scores) - 1
    while place > 0 and score > scores[place - 1]:
        scores[place], values[place] = scores[place - 1], values[place - 1]
        place -= 1
    scores[place], values[place] = score, value


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def _dot(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> np.float32:
    """Sums in float64, so that the order of the sum next to never shows in the float32 result."""
    total = np.float64(0)
    for i in range(len(a)):
        total += np.float64(a[i]) * np.float64(b[i])
    return np.float32(total)
