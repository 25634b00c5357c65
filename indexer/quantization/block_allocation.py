"""Allocates dimensions to the bytes of a code: few to a byte where the variance is large, many where it is small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BITS = 8
"""Bits of a block's code."""


def block_widths(variances: npt.NDArray[np.floating], blocks: int) -> list[int]:
    """Returns the widths of consecutive blocks with the least expected squared error.

    Uses dynamic programming over all cuts. A block's error is that of a Gaussian source at 8 bits (reverse
    water-filling, Cover and Thomas, "Elements of Information Theory", 10.3.3).

    Args:
      variances: [dim], in descending order.

    Returns:
      Number of dimensions of each block.

    Raises:
      ValueError: There are fewer dimensions than blocks, or no blocks.
    """
    dim = len(variances)
    if not 1 <= blocks <= dim:
        raise ValueError(f"{blocks} blocks of {dim} dimensions, expected 1 to {dim}")
    errors = np.full((dim + 1, dim + 1), np.inf)
    for start in range(dim):
        errors[start, start + 1 :] = _errors_of_prefixes(np.asarray(variances[start:], np.float64))
    least = np.full((blocks + 1, dim + 1), np.inf)
    least[0, 0] = 0
    cut = np.zeros((blocks + 1, dim + 1), int)
    for block in range(1, blocks + 1):
        totals = least[block - 1][:, None] + errors  # [start, end]
        cut[block] = np.argmin(totals, axis=0)
        least[block] = np.min(totals, axis=0)
    widths = []
    end = dim
    for block in range(blocks, 0, -1):
        start = int(cut[block, end])
        widths.append(end - start)
        end = start
    return widths[::-1]


def _errors_of_prefixes(variances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the expected error at 8 bits of the first 1, 2, ... dimensions; variances descend."""
    variances = np.maximum(variances, 1e-30)
    logs = np.cumsum(np.log2(variances))
    sizes = np.arange(1, len(variances) + 1)
    # Bits go to the first dimensions only, whose errors equal the water level; as many dimensions are used as have a
    # variance above the level.
    levels = 2 ** ((logs - 2 * BITS) / sizes)
    used = max(int(np.sum(levels < variances)), 1)
    sizes_used = np.minimum(sizes, used)
    return levels[sizes_used - 1] * sizes_used + np.cumsum(np.where(sizes > used, variances, 0))
