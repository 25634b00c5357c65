"""Trains the codebooks of product quantization with blocks of uneven width.

A mapped vector (indexer.quantization.query_map) is cut into blocks of dimensions, and each block has a codebook of 256
entries. indexer.quantization.codes chooses the entries that represent a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled

CODEBOOK_SIZE = 256
"""Number of entries in a codebook: the on-device format stores 8 bits per block."""

_SEEDING = 16 * CODEBOOK_SIZE
"""Number of points that k-means++ draws from."""

Matrix = npt.NDArray[np.float32]


def train_codebooks(
    sample: Matrix, widths: Sequence[int], iterations: int, seed: int, threads: int = 1
) -> list[Matrix]:
    """Fits a codebook to each block of a sample by k-means.

    Args:
      sample: [n, dim] float32, mapped.
      widths: Number of dimensions of each block; they add up to dim.

    Returns:
      Codebook [256, width] float32 of each block.
    """
    bounds = np.cumsum([0, *widths])

    def fit(block: int) -> Matrix:
        points = np.ascontiguousarray(sample[:, bounds[block] : bounds[block + 1]])
        return _k_means(points, iterations, np.random.default_rng([seed, block]))

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(fit, range(len(widths))))


def _k_means(points: Matrix, iterations: int, generator: np.random.Generator) -> Matrix:
    """Runs Lloyd's algorithm from a k-means++ start; an empty cluster restarts at a point far from its center."""
    count = len(points)
    centers = _plus_plus(points[:_SEEDING], generator.random(CODEBOOK_SIZE))
    nearest, distances = np.empty(count, np.int64), np.empty(count, np.float32)
    sums, sizes = np.empty(centers.shape, np.float64), np.empty(CODEBOOK_SIZE, np.int64)
    for _ in range(iterations):
        _assign(points, np.ascontiguousarray(centers.T), nearest, distances, sums, sizes)
        filled = sizes > 0
        centers[filled] = (sums[filled] / sizes[filled, None]).astype(np.float32)
        empty = np.flatnonzero(~filled)
        if count > len(empty) > 0:
            centers[empty] = points[np.argpartition(distances, -len(empty))[-len(empty) :]]
    return centers


@compiled
def _plus_plus(points: Matrix, draws: npt.NDArray[np.float64]) -> Matrix:
    """Chooses centers by k-means++ (Arthur and Vassilvitskii 2007); draws: [k] uniform in [0, 1)."""
    centers = np.empty((len(draws), points.shape[1]), np.float32)
    distances = np.full(len(points), np.inf)
    chosen = int(draws[0] * len(points))
    for k in range(len(draws)):
        centers[k] = points[chosen]
        total = 0.0
        for row in range(len(points)):
            distance = 0.0
            for dim in range(points.shape[1]):
                difference = points[row, dim] - centers[k, dim]
                distance += difference * difference
            distances[row] = min(distances[row], distance)
            total += distances[row]
        if k + 1 < len(draws):
            left = draws[k + 1] * total
            chosen = 0
            while chosen < len(points) - 1 and left >= distances[chosen]:
                left -= distances[chosen]
                chosen += 1
    return centers


@compiled
def argmin_of_bits(levels: npt.NDArray[np.int32]) -> int:
    """Returns the index of the smallest of 256 non-negative float32 numbers, given their bits as int32.

    Such numbers sort like their bits. The index replaces the last 8 bits, which loses only that precision: a minimum
    of integers compiles to vector instructions, while a minimum of floats and a search for its index do not.
    """
    least = np.int32(2**31 - 1)
    for entry in range(256):
        least = min(least, (levels[entry] & np.int32(-256)) | np.int32(entry))
    return int(least & 255)


@compiled
def _assign(
    points: Matrix,
    centers: Matrix,
    nearest: npt.NDArray[np.int64],
    distances: Matrix,
    sums: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
) -> None:
    """Writes each point's nearest of 256 centers [width, 256] and squared distance, and cluster sums and sizes."""
    sums[:] = 0
    sizes[:] = 0
    levels = np.empty(256, np.float32)
    bits = levels.view(np.int32)
    for row in range(len(points)):
        levels[:] = 0
        for dim in range(centers.shape[0]):
            value = points[row, dim]
            for entry in range(256):
                difference = value - centers[dim, entry]
                levels[entry] += difference * difference
        center = argmin_of_bits(bits)
        nearest[row], distances[row] = center, levels[center]
        sizes[center] += 1
        for dim in range(centers.shape[0]):
            sums[center, dim] += points[row, dim]
