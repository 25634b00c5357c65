"""95 percent intervals of what is measured on queries, several of which may belong to one image.

They answer how other images of the same kind would do in a gallery of the same size. Queries of one image succeed and
fail together, so they count for less than as many independent ones (Korn and Graubard 1998, Survey Methodology
24:193-201).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_Z = 1.959964  # 97.5th percentile of the normal distribution

Ints = npt.NDArray[np.int64]


def share_interval(shares: npt.NDArray[Any], images: Ints, trials: int = 1) -> tuple[float, float]:
    """The interval of a mean share: Wilson's score interval (Wilson 1927, JASA 22:209-212).

    Args:
      shares: [m], of each query: whether it hit, or the share of `trials` answers that were right.
      images: int [m], the image that each query belongs to.

    Returns:
      Least and greatest plausible share, in 0..1.
    """
    return _wilson(float(shares.mean()), _effective(shares, images, trials))


def median_interval(ranks: Ints, images: Ints) -> tuple[float, float]:
    """The interval of the median rank: the ranks at the ends of the interval of the share one half.

    (Woodruff 1952, JASA 47:635-646, with `share_interval`'s effective number of queries.)
    """
    ends = _wilson(0.5, _effective(ranks <= np.median(ranks), images, 1))
    low, high = np.quantile(ranks, ends, method="inverted_cdf")
    return float(low), float(high)


def _effective(shares: npt.NDArray[Any], images: Ints, trials: int) -> float:
    """The number of independent trials whose share would vary as much as this one over samples of images."""
    share = float(shares.mean())
    _, rows, counts = np.unique(images, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return 1.0
    deviations = np.bincount(rows, shares - share)
    variance = len(counts) / (len(counts) - 1) * float((deviations**2).sum()) / len(shares) ** 2
    if variance <= 0.0:  # all alike: nothing is known of how captions of an image agree
        return float(len(counts))
    return min(max(share * (1.0 - share) / variance, 1.0), float(len(shares) * trials))


def _wilson(share: float, count: float) -> tuple[float, float]:
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
