"""Grows large sets of vectors from real embeddings, which isotropic random vectors represent poorly.

A grown vector interpolates between a real vector and one of its neighbours, plus noise drawn from the differences
between real vectors and the means of their neighbours. Uniform interpolation retains two thirds of the variance of real
vectors around their neighbours; the scale of the noise restores it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 10
NOISE = (1 / 3) ** 0.5
BLOCK = 16_384


def grow(base: npt.NDArray[np.float32], count: int, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Yields `count` vectors in blocks [up to BLOCK, dim] float32, L2-normalised, starting with the base itself."""
    generator = np.random.default_rng(seed)
    neighbours = np.concatenate([_neighbours(base, start) for start in range(0, len(base), 1024)])
    residuals = base - base[neighbours].mean(axis=1)
    yield from (base[start : start + BLOCK] for start in range(0, min(len(base), count), BLOCK))
    for start in range(len(base), count, BLOCK):
        size = min(BLOCK, count - start)
        rows = generator.integers(len(base), size=size)
        others = neighbours[rows, generator.integers(NEIGHBOURS, size=size)]
        weight = generator.random((size, 1), np.float32)
        noise = residuals[generator.integers(len(base), size=size)] * generator.choice([-1, 1], (size, 1))
        grown = (1 - weight) * base[rows] + weight * base[others] + np.float32(NOISE) * noise
        yield (grown / np.linalg.norm(grown, axis=1, keepdims=True)).astype(np.float32)


def _neighbours(base: npt.NDArray[np.float32], start: int) -> npt.NDArray[np.int64]:
    scores = base[start : start + 1024] @ base.T
    scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf
    return np.argpartition(scores, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
