"""Where the queries lie that have a vector among their best hits: the direction in which its code must be exact.

They do not lie all around the vector. Their mean is a smooth function of it, which kernel ridge regression on landmarks
finds: linear in the vector and in its nearness to LANDMARKS items. (Rahimi and Recht 2007, "Random Features for
Large-Scale Kernel Machines", have the idea of a fixed set of features.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

LANDMARKS = 512
"""Items that nearness is measured to."""

_SQUARINGS = 3
"""The kernel is ((1 + x . l) / 2)^(2^squarings) on unit vectors: close to a Gaussian's, without its exponentials."""

_RIDGE = 1e-3
"""Of the regression, as a share of each input's own square."""

_ROWS = 8192
"""Pairs that are taken in at once."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Leaning:
    """The mean query near a vector x, mapped, as weights @ [kernel(x, landmarks), y, 1], y being x mapped.

    Attributes:
      landmarks: [h, dim] float32, vectors of the corpus; none where nothing is known of queries.
      weights: [dim, h + dim + 1] float32.
    """

    landmarks: Matrix
    weights: Matrix

    @classmethod
    def own(cls, dim: int) -> Leaning:
        """Takes a mapped vector's own direction for that of its queries."""
        return cls(np.empty((0, dim), np.float32), np.eye(dim, dim + 1, dtype=np.float32))

    @classmethod
    def fit(cls, vectors: Matrix, mapped: Matrix, queries: Matrix, landmarks: Matrix) -> Leaning:
        """Fits the weights to pairs of vectors and queries.

        Args:
          vectors, mapped: [n, dim] float32, vectors that are among the best hits of
          queries: [n, dim] float32, mapped by A^-T.
          landmarks: [h, dim] float32.
        """
        width = len(landmarks) + mapped.shape[1] + 1
        gram, sides = np.zeros((width, width)), np.zeros((width, queries.shape[1]))
        for start in range(0, len(vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            inputs = _inputs(vectors[rows], mapped[rows], landmarks).astype(np.float64)
            gram += inputs.T @ inputs
            sides += inputs.T @ queries[rows]
        gram[np.diag_indices_from(gram)] *= 1 + _RIDGE
        weights = np.linalg.lstsq(gram, sides, rcond=None)[0]
        return cls(np.ascontiguousarray(landmarks), np.ascontiguousarray(weights.T, np.float32))

    def directions(self, vectors: Matrix, mapped: Matrix, anisotropic_weight: float) -> Matrix:
        """Returns [n, dim] float32 of squared length `anisotropic_weight`, each by itself: not of its batch."""
        found = product(_inputs(vectors, mapped, self.landmarks), self.weights)
        norms = np.sqrt(np.einsum("nd,nd->n", found, found))
        scale = np.divide(np.float32(anisotropic_weight**0.5), norms, out=np.zeros_like(norms), where=norms > 0)
        return found * scale[:, None]


def product(vectors: Matrix, matrix: Matrix) -> Matrix:
    """Returns matrix @ x for vectors [n, dim]; each by itself, which a matrix product of a batch is not."""
    out = np.zeros((len(vectors), len(matrix)), np.float32)
    _product(np.ascontiguousarray(vectors), np.ascontiguousarray(matrix.T), out)
    return out


def _inputs(vectors: Matrix, mapped: Matrix, landmarks: Matrix) -> Matrix:
    return np.concatenate([_kernel(vectors, landmarks), mapped, np.ones((len(mapped), 1), np.float32)], axis=1)


def _kernel(vectors: Matrix, landmarks: Matrix) -> Matrix:
    near = product(vectors, landmarks)
    near += 1
    near /= 2
    for _ in range(_SQUARINGS):
        np.square(near, out=near)
    return near


@numba.njit(cache=True, nogil=True)
def _product(vectors: Matrix, transposed: Matrix, out: Matrix) -> None:
    """Four dimensions at a time: a sum is read and written once for all of them."""
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
