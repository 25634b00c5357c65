"""Whether an index stands for its own corpus: every code for its vector, every centroid for the items around it.

Codes lie in a space of their own: for some invertible A, the indexer encodes A x, and the searcher's last layer maps
queries by A^-T, which leaves q . x as it is. That layer is in the file, so A is known, and codes are held against the
vectors that they were made of: not against others of the index, which may all be wrong, nor by means of queries, which
may tell nothing. What a code may be off by is what the best code of the same codebooks is off by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving_check.formats.index_file import Index

MAX_CODE_ERROR = 6.0
"""Squared error of a code, in those of the nearest one: an indexer may prefer another, for the sake of rankings."""

MAX_CENTROID_ERROR = 2.0
"""Squared distance from the mean of a partition's items to its centroid, in that to the nearest other centroid."""

MAX_QUERY_ERROR = 0.01
"""How far the scores of a query, over items of length 1, may be off those that the bundle's encoder gives."""

_LENGTHS = 8.0
"""How many times the median length a centroid may have, or the median its own."""

_EMPTY = 0.95
"""Share of a block's squares that its codebook may leave over; one that stands for nothing leaves all."""

_BARE = 1e-3
"""Share of all squares below which it does not matter what a block's codebook stands for."""

_ROUNDING = 1e-6
"""Share of a vector's own square that is no error."""

_SAMPLE = 4_096
"""Items whose nearest codes say what is usual."""

_ROWS = 16_384
_PARTITIONS = 1_024
"""Items, and partitions, that are compared at a time."""

Matrix = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CodeErrors:
    """What codes are off by.

    Attributes:
      items: [items] squared errors, in those of the nearest code, or of the median item's where that is more.
      left_over: median over the items of the share of their square that their code does not stand for.
      empty_blocks: blocks whose codebook stands for nothing.
    """

    items: Values
    left_over: float
    empty_blocks: list[int]


class Fidelity:
    """Compares an index with the vectors that it was built from.

    Args:
      index: of the searcher.
      vectors: [items, dim] float32, of the items in the order of the index.
      query_map: [dim, dim] float32, A^-T, by which the searcher maps queries.

    Attributes:
      transform: [dim, dim] float32, A.

    Raises:
      ValueError: the map is not one that can be inverted.
    """

    def __init__(self, index: Index, vectors: Matrix, query_map: Matrix) -> None:
        dim = index.centroids.shape[1]
        if query_map.shape != (dim, dim) or vectors.shape[1] != dim:
            raise ValueError(
                f"it maps queries by a matrix of {list(query_map.shape)}; the index has {dim} dimensions, embeddings "
                f"have {vectors.shape[1]}"
            )
        try:
            inverse = np.linalg.inv(query_map.astype(np.float64))
        except np.linalg.LinAlgError:
            inverse = np.full_like(query_map, np.nan, np.float64)
        if not np.isfinite(inverse).all():
            raise ValueError("it maps queries by a matrix that cannot be inverted")
        self._index, self._vectors = index, vectors
        self._query_map = query_map
        self.transform: Matrix = inverse.T.astype(np.float32)
        ends = np.cumsum([book.shape[1] for book in index.codebooks])
        self._blocks = [slice(end - book.shape[1], end) for end, book in zip(ends, index.codebooks, strict=True)]

    def codes(self, seed: int = 0) -> CodeErrors:
        """Returns what each code is off by."""
        usual = self._usual(seed)
        errors, left_over = [], []
        residuals, squares = np.zeros(len(self._blocks)), np.zeros(len(self._blocks))
        for start in range(0, len(self._vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            mapped = self._mapped(rows)
            residual = (self._index.decode(rows) - mapped) ** 2
            square = mapped**2
            own, whole = residual.sum(axis=1), square.sum(axis=1)
            rounding = _ROUNDING * whole + np.finfo(np.float32).tiny
            error = own / (usual + rounding)
            far = np.flatnonzero(~(error <= MAX_CODE_ERROR))
            error[far] = own[far] / (np.maximum(self._nearest(mapped[far]), usual) + rounding[far])
            errors.append(error)
            left_over.append(own / (whole + rounding))
            for sums, values in ((residuals, residual), (squares, square)):
                sums += [values[:, block].sum(dtype=np.float64) for block in self._blocks]
        empty = (residuals > _EMPTY * squares) & (squares > _BARE * squares.sum())
        return CodeErrors(
            np.concatenate(errors).astype(np.float64),
            float(np.median(np.concatenate(left_over))),
            np.flatnonzero(empty).tolist(),
        )

    def centroids(self) -> Values:
        """Returns [partitions], what each centroid is off by.

        An item lies in the partition whose centroid is nearest to it, and so does the mean of a partition's items, on
        whatever corpus the centroids were trained. A device multiplies queries with them, so lengths count, too.

        0 for a partition without items, and where there is one partition only: then the centroid chooses nothing.
        """
        sizes = self._index.partition_sizes
        errors = np.zeros(len(sizes))
        filled = np.flatnonzero(sizes)
        if len(sizes) < 2:
            return errors
        centroids = self._index.centroids.astype(np.float64) @ self._query_map
        lengths = np.linalg.norm(centroids, axis=1)
        starts = (np.cumsum(sizes) - sizes)[filled]
        means = np.add.reduceat(self._vectors, starts, axis=0, dtype=np.float64) / sizes[filled, np.newaxis]
        for start in range(0, len(filled), _PARTITIONS):
            own, some = filled[start : start + _PARTITIONS], means[start : start + _PARTITIONS]
            distances = (some**2).sum(axis=1)[:, np.newaxis] - 2 * some @ centroids.T + lengths**2
            distances = np.maximum(distances, 0) + _ROUNDING
            rows = np.arange(len(own))
            to_own = distances[rows, own]
            distances[rows, own] = np.inf
            errors[own] = to_own / distances.min(axis=1)
        median = np.median(lengths)
        errors[(lengths * _LENGTHS < median) | (lengths > median * _LENGTHS)] = np.inf
        return errors

    def _usual(self, seed: int) -> float:
        """Returns the squared error of the nearest code, of the median item."""
        count = len(self._vectors)
        rows = np.sort(np.random.default_rng(seed).choice(count, min(count, _SAMPLE), replace=False))
        return float(np.median(self._nearest(self._mapped(rows))))

    def _nearest(self, mapped: Matrix) -> Values:
        """Returns the squared errors [n] of the nearest codes of mapped vectors [n, dim]."""
        errors = np.zeros(len(mapped))
        for block, book in zip(self._blocks, self._index.codebooks, strict=True):
            part = mapped[:, block]
            distances = (book**2).sum(axis=1) - 2 * part @ book.T
            errors += np.maximum(distances.min(axis=1) + (part**2).sum(axis=1), 0)
        return errors

    def _mapped(self, rows: slice | npt.NDArray[np.int64]) -> Matrix:
        """Returns the mapped vectors [n, dim] of some items."""
        return self._vectors[rows] @ self.transform.T


def query_errors(transform: Matrix, exact: Matrix, mapped: Matrix) -> Values:
    """Returns [m], how far each query's score with a vector of length 1 may be off.

    Args:
      transform: [dim, dim] float32, A.
      exact, mapped: [m, dim] float32, queries as the bundle's encoder and as the searcher embed them.
    """
    errors: Values = np.linalg.norm(mapped.astype(np.float64) @ transform - exact, axis=1)
    return errors
