"""Estimates, for each item, the mean direction of the queries that retrieve it.

In that direction an item's code must be most accurate (indexer.quantization.codes). Queries are not spread evenly
around the items that they retrieve; their mean is a smooth function of the item's vector. Kernel ridge regression fits
it as a linear function of the vector and of its similarity to LANDMARKS items (compare Rahimi and Recht 2007, "Random
Features for Large-Scale Kernel Machines", for the fixed set of features).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled

LANDMARKS = 512
"""Number of items that the kernel compares a vector with."""

_SQUARINGS = 3
"""Number of squarings in the kernel ((1 + x . l) / 2)^(2^squarings) on unit vectors: nearly Gaussian, without exp()."""

_RIDGE = 1e-3
"""Ridge penalty, relative to the mean square of each input."""

_ROWS = 8192
"""Number of pairs processed at once."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QueryDirectionModel:
    """Predicts the mapped mean query of a vector x as weights @ [kernel(x, landmarks), y, 1], where y is x mapped.

    Attributes:
      landmarks: [h, dim] float32, corpus vectors; h is 0 if no queries are known.
      weights: [dim, h + dim + 1] float32.
    """

    landmarks: Matrix
    weights: Matrix

    @classmethod
    def identity(cls, dim: int) -> QueryDirectionModel:
        """Returns the model that predicts a mapped vector's own direction, for use without known queries."""
        return cls(np.empty((0, dim), np.float32), np.eye(dim, dim + 1, dtype=np.float32))

    @classmethod
    def fit(cls, vectors: Matrix, mapped: Matrix, queries: Matrix, landmarks: Matrix) -> QueryDirectionModel:
        """Fits the model to n pairs of an item and a query that retrieves it.

        Args:
          vectors: [n, dim] float32, vectors of the items.
          mapped: [n, dim] float32, the same vectors, mapped by A.
          queries: [n, dim] float32, mapped by A^-T.
          landmarks: [h, dim] float32.
        """
        width = len(landmarks) + mapped.shape[1] + 1
        gram, targets = np.zeros((width, width)), np.zeros((width, queries.shape[1]))
        for start in range(0, len(vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            inputs = _inputs(vectors[rows], mapped[rows], landmarks).astype(np.float64)
            gram += inputs.T @ inputs
            targets += inputs.T @ queries[rows]
        gram[np.diag_indices_from(gram)] *= 1 + _RIDGE
        weights = np.linalg.lstsq(gram, targets, rcond=None)[0]
        return cls(np.ascontiguousarray(landmarks), np.ascontiguousarray(weights.T, np.float32))

    def directions(self, vectors: Matrix, mapped: Matrix, anisotropic_weight: float) -> Matrix:
        """Returns directions [n, dim] float32 of squared length `anisotropic_weight`, row by row."""
        predicted = multiply_rows(_inputs(vectors, mapped, self.landmarks), self.weights)
        norms = np.sqrt(np.einsum("nd,nd->n", predicted, predicted))
        scale = np.divide(np.float32(anisotropic_weight**0.5), norms, out=np.zeros_like(norms), where=norms > 0)
        return predicted * scale[:, None]


def multiply_rows(vectors: Matrix, matrix: Matrix) -> Matrix:
    """Returns matrix @ x for each row x of vectors [n, dim], independent of the batch, unlike a BLAS product."""
    out = np.zeros((len(vectors), len(matrix)), np.float32)
    _multiply_rows(np.ascontiguousarray(vectors), np.ascontiguousarray(matrix.T), out)
    return out


def _inputs(vectors: Matrix, mapped: Matrix, landmarks: Matrix) -> Matrix:
    return np.concatenate([_kernel(vectors, landmarks), mapped, np.ones((len(mapped), 1), np.float32)], axis=1)


def _kernel(vectors: Matrix, landmarks: Matrix) -> Matrix:
    similarity = multiply_rows(vectors, landmarks)
    similarity += 1
    similarity /= 2
    for _ in range(_SQUARINGS):
        np.square(similarity, out=similarity)
    return similarity


@compiled
def _multiply_rows(vectors: Matrix, transposed: Matrix, out: Matrix) -> None:
    """Adds four dimensions at a time, so that each sum is read and written once for all four."""
    dims = vectors.shape[1]
    whole = dims // 4 * 4
    for row in range(len(vectors)):
        for dim in range(0, whole, 4):
            one, two = vectors[row, dim], vectors[row, dim + 1]
            three, four = vectors[row, dim + 2], vectors[row, dim + 3]
            for to in range(out.shape[1]):
                out[row, to] += (one * transposed[dim, to] + two * transposed[dim + 1, to]) + (
                    three * transposed[dim + 2, to] + four * transposed[dim + 3, to]
                )
        for dim in range(whole, dims):
            for to in range(out.shape[1]):
                out[row, to] += vectors[row, dim] * transposed[dim, to]
