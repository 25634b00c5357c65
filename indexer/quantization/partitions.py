"""Partitions a corpus: clusters the embeddings by k-means and assigns each vector to its nearest cluster.

A device scores q . c for the centroid c of each partition and scans the best ones (indexer.encoding.reference).
Embeddings are clustered without the query-aware map: clusters under the map, and centroids trained on which partitions
hold the neighbors of queries, reached a lower recall.

With thousands of clusters, a vector is compared only with the members of the groups of clusters nearest to it. Loops in
a fixed order, rather than a matrix product, make its cluster a function of the vector alone, independent of the batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled

_MAX_UNGROUPED = 256
"""Maximum number of clusters that are searched exhaustively, as one group."""

_PROBED_GROUPS = 4
"""Number of groups that a vector is compared with; they contain the nearest cluster of 99 percent of vectors."""

_GROUP_ITERATIONS = 5
"""Iterations of the k-means that groups clusters."""

Matrix = npt.NDArray[np.float32]


class PartitionAssigner:
    """Assigns vectors to their nearest clusters.

    Args:
      clusters: [partitions, dim] float32, means of the clusters.
    """

    def __init__(self, clusters: Matrix) -> None:
        count = len(clusters)
        groups = 1 if count <= _MAX_UNGROUPED else int(count**0.5)
        means = clusters[:: -(-count // groups)][:groups].copy()
        for _ in range(_GROUP_ITERATIONS if groups > 1 else 0):
            means = _means(clusters, _exhaustive(clusters, means), means)
        filled, assigned = np.unique(_exhaustive(clusters, means), return_inverse=True)
        means = means[filled]
        self._numbers = np.argsort(assigned, kind="stable")
        self._ends = np.cumsum(np.bincount(assigned, minlength=len(means)))
        self._groups, self._group_halves = np.ascontiguousarray(means.T), _halves(means)
        members = np.split(clusters[self._numbers], self._ends[:-1])
        self._members = np.concatenate([part.T.reshape(-1) for part in members])  # [dim, members] for each group
        self._member_halves = _halves(clusters[self._numbers])

    def assign(self, vectors: Matrix) -> npt.NDArray[np.uint32]:
        """Returns the cluster numbers [n] uint32 of vectors [n, dim]."""
        nearest = np.empty(len(vectors), np.uint32)
        _assign(
            np.ascontiguousarray(vectors),
            self._groups,
            self._group_halves,
            self._members,
            self._member_halves,
            self._ends,
            self._numbers,
            nearest,
        )
        return nearest


def train_partitions(sample: Matrix, partitions: int, iterations: int, seed: int) -> Matrix:
    """Clusters a sample by k-means.

    Args:
      sample: [n, dim] float32, n >= partitions.

    Returns:
      Means [partitions, dim] float32 of the clusters.
    """
    generator = np.random.default_rng(seed)
    clusters = sample[np.sort(generator.choice(len(sample), partitions, replace=False))].copy()
    for _ in range(iterations if partitions > 1 else 1):
        nearest = PartitionAssigner(clusters).assign(sample)
        sizes = np.bincount(nearest, minlength=partitions)
        clusters = _means(sample, nearest, clusters)
        # An empty cluster restarts at a random member of one of the largest.
        largest_first = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
        for empty, largest in zip(np.flatnonzero(sizes == 0), largest_first, strict=False):
            members = np.flatnonzero(nearest == largest)
            clusters[empty] = sample[members[generator.integers(len(members))]]
    return clusters


def _means(vectors: Matrix, assigned: npt.NDArray[np.integer], before: Matrix) -> Matrix:
    """Returns the mean of each cluster's vectors; an empty cluster keeps its mean from `before`."""
    sizes = np.bincount(assigned, minlength=len(before))
    filled = np.flatnonzero(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes[filled])[:-1]])
    sums = np.add.reduceat(vectors[np.argsort(assigned, kind="stable")], starts, axis=0, dtype=np.float64)
    means = before.copy()
    means[filled] = (sums / sizes[filled, None]).astype(np.float32)
    return means


def _exhaustive(vectors: Matrix, points: Matrix) -> npt.NDArray[np.int64]:
    """Returns the numbers [n] int64 of the points nearest to vectors [n, dim], by exhaustive search."""
    nearest = np.empty(len(vectors), np.int64)
    _scan(np.ascontiguousarray(vectors), np.ascontiguousarray(points.T).reshape(-1), _halves(points), nearest)
    return nearest


@compiled
def _scores(vector: Matrix, points: Matrix, halves: Matrix, out: Matrix) -> None:
    """Writes vector . point - halves for points [dim, n], flattened; processes four dimensions at a time."""
    size = len(out)
    out[:] = -halves
    whole = len(vector) // 4 * 4
    for dim in range(0, whole, 4):
        one, two, three, four = vector[dim], vector[dim + 1], vector[dim + 2], vector[dim + 3]
        first = points[dim * size : (dim + 1) * size]
        second = points[(dim + 1) * size : (dim + 2) * size]
        third = points[(dim + 2) * size : (dim + 3) * size]
        fourth = points[(dim + 3) * size : (dim + 4) * size]
        for i in range(size):
            out[i] += one * first[i] + two * second[i] + (three * third[i] + four * fourth[i])
    for dim in range(whole, len(vector)):
        for i in range(size):
            out[i] += vector[dim] * points[dim * size + i]


@compiled
def _halves(vectors: Matrix) -> Matrix:
    """Returns half the squared norm [n] of each vector [n, dim]."""
    halves = np.zeros(len(vectors), np.float32)
    for row in range(len(vectors)):
        for dim in range(vectors.shape[1]):
            halves[row] += vectors[row, dim] * vectors[row, dim] / np.float32(2)
    return halves


@compiled
def _scan(vectors: Matrix, points: Matrix, halves: Matrix, nearest: npt.NDArray[np.int64]) -> None:
    scores = np.empty(len(halves), np.float32)
    for row in range(len(vectors)):
        _scores(vectors[row], points, halves, scores)
        nearest[row] = np.argmax(scores)


@compiled
def _assign(
    vectors: Matrix,
    groups: Matrix,
    group_halves: Matrix,
    members: Matrix,
    member_halves: Matrix,
    ends: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    nearest: npt.NDArray[np.uint32],
) -> None:
    dims = vectors.shape[1]
    group_scores = np.empty(len(group_halves), np.float32)
    scores = np.empty(len(member_halves), np.float32)
    for row in range(len(vectors)):
        _scores(vectors[row], groups.reshape(-1), group_halves, group_scores)
        best, chosen = np.float32(-np.inf), np.int64(len(numbers))
        for _ in range(min(_PROBED_GROUPS, len(group_scores))):
            group = np.argmax(group_scores)
            group_scores[group] = -np.inf
            end = ends[group]
            start = ends[group - 1] if group > 0 else np.int64(0)
            part = scores[: end - start]
            _scores(vectors[row], members[start * dims : end * dims], member_halves[start:end], part)
            for i in range(len(part)):
                number = numbers[start + i]
                if part[i] > best or (part[i] == best and number < chosen):
                    best, chosen = part[i], number
        nearest[row] = chosen
