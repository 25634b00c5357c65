"""95 percent confidence intervals of metrics over queries, several of which may belong to one image.

The intervals are for other images of the same kind in a gallery of the same size. Queries of one image tend to succeed
or fail together, so the effective number of queries is smaller (Korn and Graubard 1998, Survey Methodology 24:193-201).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_Z = 1.959964  # 97.5th percentile of the normal distribution

Ints = npt.NDArray[np.int64]


def share_interval(shares: npt.NDArray[Any], images: Ints, trials: int = 1) -> tuple[float, float]:
    """Returns the lower and upper bound of a mean share by Wilson's score interval (Wilson 1927, JASA 22:209-212).

    Args:
      shares: [m] share of `trials` correct answers of each query, in 0..1; booleans for a single trial.
      images: [m] int64, number of the image that each query belongs to.
      trials: Number of answers of each query.
    """
    return _wilson(float(shares.mean()), _effective(shares, images, trials))


def median_interval(ranks: Ints, images: Ints) -> tuple[float, float]:
    """Returns the lower and upper bound of the median rank (Woodruff 1952, JASA 47:635-646).

    These are the quantiles at the bounds of the interval around a share of one half, with the effective number of
    queries of `share_interval`.
    """
    bounds = _wilson(0.5, _effective(ranks <= np.median(ranks), images, 1))
    low, high = np.quantile(ranks, bounds, method="inverted_cdf")
    return float(low), float(high)


def _effective(shares: npt.NDArray[Any], images: Ints, trials: int) -> float:
    """Returns the effective sample size: the number of independent trials that would give a share of this variance."""
    share = float(shares.mean())
    _, rows, counts = np.unique(images, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return 1.0
    deviations = np.bincount(rows, shares - share)
    variance = len(counts) / (len(counts) - 1) * float((deviations**2).sum()) / len(shares) ** 2
    if variance <= 0.0:  # all images are alike, so the correlation within an image is unknown
        return float(len(counts))
    return min(max(share * (1.0 - share) / variance, 1.0), float(len(shares) * trials))


def _wilson(share: float, count: float) -> tuple[float, float]:
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
