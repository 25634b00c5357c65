"""Whether an index stands for its own corpus: every code for its vector, every centroid for its items, the encoder for
the one that embedded the corpus.

All three are seen in scores. Codes lie in a space of their own (the indexer may map it), but scores do not: for a query
that the bundle's encoder embeds as q and the searcher's as q', the decoded code c of an item x is to give q'.c close to
q.x. So an item's approximate scores, over many queries, must be nearer to its own exact scores than to those of other
items; likewise a query's scores over many items. That holds for any quantizer that is of use, and fails where an item's
code, id or partition is another's, or the encoder is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from serving_check.index_file import Index

LIMIT = 0.5
"""Where half of the squared errors exceed this share of the typical squared distance to others, all are faults."""

_OTHERS = 32
"""Whose scores an item's are compared with."""

_SLACK = 1e-3
"""Of the squared scores themselves: equal items cannot be told apart, and need not be."""

_ROWS = 16_384
_SAMPLE = 4_096
"""Items over which queries' scores are compared."""

Matrix = npt.NDArray[np.float32]


class Fidelity:
    """Compares an index with the vectors that it was built from.

    Args:
      index: of the searcher.
      vectors: [items, dim] float32, of the items in the order of the index.
      exact, mapped: [m, dim] float32, queries as the bundle's encoder and as the searcher's own embed them.
      seed: of the sample of others.
    """

    def __init__(self, index: Index, vectors: Matrix, exact: Matrix, mapped: Matrix, seed: int = 0) -> None:
        self._index, self._vectors, self._exact, self._mapped = index, vectors, exact, mapped
        self._random = np.random.default_rng(seed)

    def codes(self) -> npt.NDArray[np.float32]:
        """Returns [items], the relative error of each item's code; see `limit_of`."""
        others = self._vectors[self._choice(len(self._vectors), _OTHERS)] @ self._exact.T
        parts = [
            _relative_errors(decoded @ self._mapped.T, vectors @ self._exact.T, others)
            for decoded, vectors in self._chunks()
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def centroids(self) -> npt.NDArray[np.float32]:
        """Returns [partitions], the relative error of each centroid against the mean of its items.

        0 for a partition without items, and where there is one partition only: then the centroid chooses nothing.
        """
        sizes = self._index.partition_sizes
        errors = np.zeros(len(sizes), np.float32)
        filled = np.flatnonzero(sizes)
        if len(sizes) < 2:
            return errors
        starts = (np.cumsum(sizes) - sizes)[filled]
        means = np.add.reduceat(self._vectors, starts, axis=0) / sizes[filled, np.newaxis]
        exact = means @ self._exact.T
        others = exact[self._choice(len(filled), _OTHERS)]
        errors[filled] = _relative_errors(self._index.centroids[filled] @ self._mapped.T, exact, others)
        return errors

    def queries(self) -> npt.NDArray[np.float32]:
        """Returns [m], the relative error of each query's scores over a sample of items; see `limit_of`."""
        items = np.sort(self._choice(len(self._vectors), _SAMPLE))
        decoded = self._index.decode(items)
        exact = self._exact @ self._vectors[items].T
        others = exact[self._choice(len(exact), _OTHERS)]
        return _relative_errors(self._mapped @ decoded.T, exact, others)

    def _chunks(self) -> Iterator[tuple[Matrix, Matrix]]:
        for start in range(0, len(self._vectors), _ROWS):
            items = slice(start, start + _ROWS)
            yield self._index.decode(items), self._vectors[items]

    def _choice(self, total: int, count: int) -> npt.NDArray[np.int64]:
        return self._random.choice(total, min(total, count), replace=False)


def limit_of(errors: npt.NDArray[np.float32], least: float = 0.05, times_median: float = 30.0) -> float:
    """Returns what the relative error of a code or of a query may be: the better the others are, the less.

    Where codes are of a byte or two, single ones may be far off though most are not.
    """
    median = float(np.median(errors)) if len(errors) else 0.0
    return max(least, times_median * median) if median <= LIMIT else LIMIT


def centroid_limit(errors: npt.NDArray[np.float32]) -> float:
    """Returns what the relative error of a centroid may be: it was made of other items than are in its partition."""
    return limit_of(errors, LIMIT, 4.0)


def _relative_errors(found: Matrix, expected: Matrix, others: Matrix) -> npt.NDArray[np.float32]:
    """Returns [n]: the squared error of each row of `found`, relative to the median squared distance to other rows.

    Or to the row's own square where that is less: what is near nothing is near to no row.

    Args:
      found, expected: [n, m]; others: [o, m], some rows that were expected.
    """
    own = ((found - expected) ** 2).sum(axis=1)
    square = (expected**2).sum(axis=1)
    distances = square[:, np.newaxis] - 2 * expected @ others.T + (others**2).sum(axis=1)
    scale = np.maximum(np.minimum(np.median(distances, axis=1), square) + _SLACK * square, np.finfo(np.float32).tiny)
    with np.errstate(all="ignore"):  # what overflows is no number, and so an error
        errors: npt.NDArray[np.float32] = np.where(np.isfinite(own), own / scale, np.inf).astype(np.float32)
    return errors
