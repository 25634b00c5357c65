"""Chooses the codes of vectors: one codebook entry for each block of dimensions, by an anisotropic loss.

A mapped vector y (indexer.quantization.query_map) is cut into blocks, and each block is represented by one of the 256
entries of its codebook. The loss of a code with residual r = y - entries is

    |r|^2 + (v . r)^2

where v is the mean direction of the queries that retrieve y: the residual along v changes y's rank in their results.
With v along y itself this is the score-aware loss of Guo et al. 2020, "Accelerating Large-Scale Inference with
Anisotropic Vector Quantization", arXiv:1908.10396. Text queries lie apart from images, so v is learned
(indexer.quantization.query_direction).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled
from indexer.quantization.codebooks import Matrix, argmin_of_bits

_SWEEPS = 4
"""Maximum passes of coordinate descent over the blocks of a code; hardly any code changes after that."""


def encode(vectors: Matrix, directions: Matrix, codebooks: Sequence[Matrix]) -> npt.NDArray[np.uint8]:
    """Returns the codes [n, blocks] uint8 of mapped vectors, row by row, independent of the batch.

    Args:
      vectors: [n, dim] float32, y of the loss.
      directions: [n, dim] float32, v of the loss; v = 0 chooses the nearest entries.
    """
    entries, ends = concatenate_codebooks(codebooks)
    codes = np.empty((len(vectors), len(ends)), np.uint8)
    _encode(np.ascontiguousarray(vectors), np.ascontiguousarray(directions), entries, ends, codes)
    return codes


def decode(codes: npt.NDArray[np.uint8], codebooks: Sequence[Matrix]) -> Matrix:
    """Reconstructs mapped vectors [n, dim] from codes [n, blocks]."""
    return np.concatenate([book[codes[:, block]] for block, book in enumerate(codebooks)], axis=1)


def concatenate_codebooks(codebooks: Sequence[Matrix]) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """Returns the entries of all codebooks as [dim, 256], and the end of each block of dimensions [blocks]."""
    entries = np.ascontiguousarray(np.concatenate(codebooks, axis=1).T, np.float32)
    return entries, np.cumsum([book.shape[1] for book in codebooks])


@compiled
def _encode(
    vectors: Matrix,
    directions: Matrix,
    entries: Matrix,
    ends: npt.NDArray[np.int64],
    codes: npt.NDArray[np.uint8],
) -> None:
    blocks = len(ends)
    errors = np.empty((blocks, 256), np.float32)  # |r|^2 of a block
    alongs = np.empty((blocks, 256), np.float32)  # v . entry
    levels = np.empty(256, np.float32)
    bits, error_bits = levels.view(np.int32), errors.view(np.int32)
    for row in range(len(vectors)):
        start = 0
        along = np.float32(0)  # v . r
        directed = False
        for block in range(blocks):
            errors[block] = 0
            alongs[block] = 0
            for dim in range(start, ends[block]):
                value, direction = vectors[row, dim], directions[row, dim]
                along += value * direction
                directed |= direction != 0
                for entry in range(256):
                    difference = value - entries[dim, entry]
                    errors[block, entry] += difference * difference
                    alongs[block, entry] += direction * entries[dim, entry]
            start = ends[block]
            best = argmin_of_bits(error_bits[block])
            codes[row, block] = best
            along -= alongs[block, best]
        for _ in range(_SWEEPS if directed else 0):
            changed = False
            for block in range(blocks):
                before = codes[row, block]
                others = along + alongs[block, before]
                for entry in range(256):
                    left = others - alongs[block, entry]
                    levels[entry] = errors[block, entry] + left * left
                best = argmin_of_bits(bits)
                if levels[best] < levels[before]:
                    codes[row, block] = best
                    along = others - alongs[block, best]
                    changed = True
            if not changed:
                break
