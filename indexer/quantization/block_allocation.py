"""How many dimensions share each byte of a code: few where the variance is large, many where it is small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BITS = 8
"""Of a block's code."""


def block_widths(variances: npt.NDArray[np.floating], blocks: int) -> list[int]:
    """Cuts dimensions, in their order, into blocks of the least expected squared error.

    Dynamic programming over all cuts; a block's error is that of a Gaussian source at 8 bits (reverse water-filling,
    Cover and Thomas, "Elements of Information Theory", 10.3.3).

    Args:
      variances: [dim], in descending order.

    Returns:
      The number of dimensions of each block.

    Raises:
      ValueError: there are fewer dimensions than blocks.
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
    """Returns the error at 8 bits of the first 1, 2, ... dimensions, whose variances descend."""
    variances = np.maximum(variances, 1e-30)
    logs = np.cumsum(np.log2(variances))
    sizes = np.arange(1, len(variances) + 1)
    # With the first `size` dimensions in use, all are at the water level; the widest use whose level is below its
    # smallest variance is the right one.
    levels = 2 ** ((logs - 2 * BITS) / sizes)
    used = max(int(np.sum(levels < variances)), 1)
    sizes_used = np.minimum(sizes, used)
    return levels[sizes_used - 1] * sizes_used + np.cumsum(np.where(sizes > used, variances, 0))
