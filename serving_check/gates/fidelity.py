"""Compares an index with the vectors that it was built from: every code with its vector, every centroid with its items.

The indexer encodes A x for some invertible matrix A, and the last layer of the searcher's model maps queries by A^-T,
which preserves q . x. That layer is in the file, so A is known and every code can be compared with its own vector. This
detects faults that affect all codes alike, and needs no queries. Errors are relative to those of the nearest codes of
the same codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving_check.formats.index_file import Index

MAX_CODE_ERROR = 6.0
"""Maximum squared error of a code, relative to the nearest code; an indexer may choose another for better rankings."""

MAX_CENTROID_ERROR = 2.0
"""Maximum squared distance of a partition's mean from its centroid, relative to the nearest other centroid."""

MAX_QUERY_ERROR = 0.01
"""Maximum difference between scores of the searcher's and of the bundle's encoder, over items of length 1."""

_MAX_LENGTH_RATIO = 8.0
"""Maximum ratio of a centroid's length to the median length, and of the median length to a centroid's."""

_MAX_BLOCK_LOSS = 0.95
"""Maximum share of a block's squared values that its codebook may lose; a useless codebook loses all."""

_NEGLIGIBLE_BLOCK = 1e-3
"""Share of all squared values below which a block's codebook is not judged."""

_ROUNDING = 1e-6
"""Tolerance for rounding, as a share of a vector's squared length."""

_SAMPLE = 4_096
"""Number of items from which the typical error of the nearest code is estimated."""

_ROWS = 16_384
"""Number of items that are compared at a time."""

_PARTITIONS = 1_024
"""Number of partitions that are compared at a time."""

Matrix = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CodeErrors:
    """Errors of all codes.

    Attributes:
      items: [items] squared errors, relative to the nearest code's or to the median item's nearest code's, whichever
        is larger.
      median_loss: Median over the items of the squared error as a share of the vector's squared length.
      useless_blocks: Blocks whose codebook represents nothing.
    """

    items: Values
    median_loss: float
    useless_blocks: list[int]


class Fidelity:
    """Compares an index with the vectors that it was built from.

    Args:
      index: Index of the searcher.
      vectors: [items, dim] float32, vectors of the items in the order of the index.
      query_map: [dim, dim] float32, A^-T, the matrix by which the searcher maps queries.

    Attributes:
      transform: [dim, dim] float32, A.

    Raises:
      ValueError: The query map has another shape or is not invertible.
    """

    def __init__(self, index: Index, vectors: Matrix, query_map: Matrix) -> None:
        dim = index.centroids.shape[1]
        if query_map.shape != (dim, dim) or vectors.shape[1] != dim:
            raise ValueError(
                f"it maps queries by a matrix of shape {list(query_map.shape)}, but the index has {dim} dimensions and "
                f"the embeddings have {vectors.shape[1]}"
            )
        try:
            inverse = np.linalg.inv(query_map.astype(np.float64))
        except np.linalg.LinAlgError:
            inverse = np.full_like(query_map, np.nan, np.float64)
        if not np.isfinite(inverse).all():
            raise ValueError("it maps queries by a matrix that is not invertible")
        self._index, self._vectors = index, vectors
        self._query_map = query_map
        self.transform: Matrix = inverse.T.astype(np.float32)
        ends = np.cumsum([book.shape[1] for book in index.codebooks])
        self._blocks = [slice(end - book.shape[1], end) for end, book in zip(ends, index.codebooks, strict=True)]

    def codes(self, seed: int = 0) -> CodeErrors:
        """Returns the errors of all codes."""
        typical = self._typical_error(seed)
        errors, losses = [], []
        residuals, squares = np.zeros(len(self._blocks)), np.zeros(len(self._blocks))
        for start in range(0, len(self._vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            mapped = self._mapped(rows)
            residual = (self._index.decode(rows) - mapped) ** 2
            square = mapped**2
            own, whole = residual.sum(axis=1), square.sum(axis=1)
            rounding = _ROUNDING * whole + np.finfo(np.float32).tiny
            error = own / (typical + rounding)
            far = np.flatnonzero(~(error <= MAX_CODE_ERROR))
            error[far] = own[far] / (np.maximum(self._nearest_errors(mapped[far]), typical) + rounding[far])
            errors.append(error)
            losses.append(own / (whole + rounding))
            for sums, values in ((residuals, residual), (squares, square)):
                sums += [values[:, block].sum(dtype=np.float64) for block in self._blocks]
        useless = (residuals > _MAX_BLOCK_LOSS * squares) & (squares > _NEGLIGIBLE_BLOCK * squares.sum())
        return CodeErrors(
            np.concatenate(errors).astype(np.float64),
            float(np.median(np.concatenate(losses))),
            np.flatnonzero(useless).tolist(),
        )

    def centroids(self) -> Values:
        """Returns the errors of the centroids, [partitions] float64.

        The mean of a partition's items is nearest to the partition's own centroid, whatever corpus the centroids were
        trained on. The error is infinite if the length of a centroid is wrong, because a device ranks partitions by dot
        product. It is 0 for a partition without items, and for the only partition of an index.
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
        errors[(lengths * _MAX_LENGTH_RATIO < median) | (lengths > median * _MAX_LENGTH_RATIO)] = np.inf
        return errors

    def _typical_error(self, seed: int) -> float:
        """Returns the median squared error of the nearest code, over a sample of the items."""
        count = len(self._vectors)
        rows = np.sort(np.random.default_rng(seed).choice(count, min(count, _SAMPLE), replace=False))
        return float(np.median(self._nearest_errors(self._mapped(rows))))

    def _nearest_errors(self, mapped: Matrix) -> Values:
        """Returns the squared errors [n] of the nearest codes of mapped vectors [n, dim]."""
        errors = np.zeros(len(mapped))
        for block, book in zip(self._blocks, self._index.codebooks, strict=True):
            part = mapped[:, block]
            distances = (book**2).sum(axis=1) - 2 * part @ book.T
            errors += np.maximum(distances.min(axis=1) + (part**2).sum(axis=1), 0)
        return errors

    def _mapped(self, rows: slice | npt.NDArray[np.int64]) -> Matrix:
        """Returns the vectors [n, dim] of some items, mapped into the space of the codes."""
        return self._vectors[rows] @ self.transform.T


def query_errors(transform: Matrix, exact: Matrix, mapped: Matrix) -> Values:
    """Returns the maximum error of each query's score with any vector of length 1, [m] float64.

    Args:
      transform: [dim, dim] float32, A.
      exact: [m, dim] float32, queries as embedded by the bundle's encoder.
      mapped: [m, dim] float32, the same queries as embedded by the searcher.
    """
    errors: Values = np.linalg.norm(mapped.astype(np.float64) @ transform - exact, axis=1)
    return errors
