"""Query-aware linear map of corpus vectors: whitens the queries and aligns the corpus with its principal axes.

For any invertible A, (A^-T q) . (A x) = q . x: the corpus is indexed as A x, and A^-T becomes the last layer of the
query encoder. The error e of a stored vector moves the scores of queries by q . e, whose mean square is e^T M e, where
M is the queries' second moment. Under A = R M^1/2 that is |A e|^2, the squared distance that quantizers minimise. The
rotation R takes the mapped corpus to its principal axes, so that blocks of dimensions
(indexer.quantization.block_allocation) can be the wider the smaller their variance. Without queries, M is the identity.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_FLOOR = 1e-3
"""Minimum eigenvalue of M relative to the mean, so that no direction is treated as irrelevant to all queries."""


Matrix = npt.NDArray[np.float32]


def query_aware_map(vectors: Matrix, queries: Matrix | None) -> Matrix:
    """Returns A [dim, dim] float32, for column vectors.

    Args:
      vectors: [n, dim] float32, a sample of the corpus.
      queries: [m, dim] float32, a sample of the queries, or None if unknown.
    """
    root = np.eye(vectors.shape[1]) if queries is None else _square_root(queries)
    mapped = vectors.astype(np.float64) @ root
    mapped -= mapped.mean(axis=0)
    values, axes = np.linalg.eigh(mapped.T @ mapped / len(mapped))
    order = np.argsort(-values, kind="stable")
    axes = axes[:, order]
    # An eigenvector's sign is arbitrary; the same input must give the same map.
    axes *= np.where(axes[np.argmax(np.abs(axes), axis=0), np.arange(len(axes))] < 0, -1, 1)
    return (axes.T @ root).astype(np.float32)


def inverse_transpose(transform: Matrix) -> Matrix:
    """Returns A^-T [dim, dim] float32, the map of queries."""
    return np.linalg.inv(transform.astype(np.float64)).T.astype(np.float32)


def _square_root(queries: Matrix) -> npt.NDArray[np.float64]:
    """Returns M^1/2, the square root of the queries' second moment, with eigenvalues clipped to the floor."""
    moment = queries.T.astype(np.float64) @ queries / len(queries)
    values, axes = np.linalg.eigh(moment)
    values = np.maximum(values, _FLOOR * values.mean())
    return (axes * np.sqrt(values)) @ axes.T
