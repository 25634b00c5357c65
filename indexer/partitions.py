"""Partitions of the corpus: which items lie together on the device, and which of them a query reads.

A device scores q . c for the centroid c of each partition and reads the best ones (see indexer.reference). Clusters are
those of the embeddings themselves: clusters under the query-aware map, or centroids trained on which partitions hold
the answers of queries, found fewer of them.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

_ROWS = 4096
"""Vectors whose scores are computed at once."""

_CLOSE = 1e-5
"""Scores closer than this share of the two norms' product are computed again in a fixed order: how a matrix product
rounds depends on its shape, and a vector's partition must not depend on its batch."""

Matrix = npt.NDArray[np.float32]


def train_partitions(sample: Matrix, partitions: int, iterations: int, seed: int) -> Matrix:
    """Clusters a sample by k-means.

    Args:
      sample: [n, dim] float32, n >= partitions.

    Returns:
      centroids [partitions, dim] float32: the means of the clusters.
    """
    generator = np.random.default_rng(seed)
    centroids = sample[np.sort(generator.choice(len(sample), partitions, replace=False))].copy()
    for _ in range(iterations if partitions > 1 else 1):
        nearest = assign(sample, centroids)
        order = np.argsort(nearest, kind="stable")
        sizes = np.bincount(nearest, minlength=partitions)
        filled = np.flatnonzero(sizes)
        starts = np.concatenate([[0], np.cumsum(sizes[filled])[:-1]])
        sums = np.add.reduceat(sample[order], starts, axis=0, dtype=np.float64)
        centroids[filled] = (sums / sizes[filled, None]).astype(np.float32)
        # An empty cluster takes over a member of one of the largest.
        largest_first = np.argsort(-sizes, kind="stable")[: len(filled)]
        for empty, largest in zip(np.flatnonzero(sizes == 0), largest_first, strict=False):
            members = np.flatnonzero(nearest == largest)
            centroids[empty] = sample[members[generator.integers(len(members))]]
    return centroids


def assign(vectors: Matrix, centroids: Matrix) -> npt.NDArray[np.uint32]:
    """Returns the number [n] of the nearest centroid of each vector [n, dim], by itself: not of its batch."""
    nearest = np.empty(len(vectors), np.uint32)
    halves = np.einsum("pd,pd->p", centroids, centroids) / 2
    close = np.float32(_CLOSE * np.sqrt(2 * halves.max(initial=0)))
    for start in range(0, len(vectors), _ROWS):
        rows = slice(start, start + _ROWS)
        scores = vectors[rows] @ centroids.T
        _nearest(np.ascontiguousarray(vectors[rows]), centroids, halves, scores, close, nearest[rows])
    return nearest


@numba.njit(cache=True, nogil=True)
def _nearest(
    vectors: Matrix,
    centroids: Matrix,
    halves: Matrix,
    scores: Matrix,
    close: np.float32,
    nearest: npt.NDArray[np.uint32],
) -> None:
    for row in range(len(vectors)):
        best = np.float32(-np.inf)
        norm = np.float32(0)
        for dim in range(vectors.shape[1]):
            norm += vectors[row, dim] * vectors[row, dim]
        for i in range(len(halves)):
            score = scores[row, i] - halves[i]
            scores[row, i] = score
            best = max(best, score)
        least = best - close * np.sqrt(norm)
        chosen, nearest_distance = 0, np.float64(np.inf)
        for i in range(len(halves)):
            if scores[row, i] >= least:
                distance = np.float64(0)
                for dim in range(vectors.shape[1]):
                    difference = np.float64(vectors[row, dim]) - np.float64(centroids[i, dim])
                    distance += difference * difference
                if distance < nearest_distance:
                    chosen, nearest_distance = i, distance
        nearest[row] = chosen
