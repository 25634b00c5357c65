"""Retrieval quality of embeddings: ranks by exact search, R@k, the median rank, and how sure they are.

R@k is the share of queries whose own counterpart is among the first k of the gallery. What ties with it counts as
ranked before it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

KS = (1, 5, 10)

_ROWS = 512  # queries compared with the whole gallery at once
_Z = 1.959964  # 97.5th percentile of the normal distribution: two-sided intervals of 95 percent

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def text_to_image(texts: Floats, images: Floats, owners: Ints) -> dict[str, Any]:
    """Ranks all images for each caption.

    Args:
      texts: float32 [m, dim], L2-normalised.
      images: float32 [n, dim], L2-normalised; the gallery.
      owners: [m], row of each caption's own image.

    Returns:
      `r_at_1`, `r_at_5`, ... as fractions, `median_rank` (1 is best), and the numbers of `captions` and of images in
      the `gallery`.
    """
    ranks = text_ranks(texts, images, owners)
    found: dict[str, Any] = {f"r_at_{k}": float((ranks <= k).mean()) for k in KS}
    return {**found, "median_rank": float(np.median(ranks)), "captions": len(texts), "gallery": len(images)}


def text_ranks(texts: Floats, images: Floats, owners: Ints) -> Ints:
    """Returns int64 [m], the rank (1 is best) of each caption's own image; see `text_to_image`."""
    ranks = np.empty(len(texts), np.int64)
    for i in range(0, len(texts), _ROWS):
        scores = texts[i : i + _ROWS] @ images.T
        own = scores[np.arange(len(scores)), owners[i : i + _ROWS]]
        # What is not worse, rather than what is better: an embedding of NaN ranks last.
        ranks[i : i + _ROWS] = len(images) - (scores < own[:, np.newaxis]).sum(1)
    return ranks


def image_ranks(texts: Floats, images: Floats, owners: Ints) -> Ints:
    """Returns int64 [n], the rank (1 is best) of each image's best own caption among all; see `text_to_image`."""
    ranks = np.empty(len(images), np.int64)
    for i in range(0, len(images), _ROWS):
        scores = images[i : i + _ROWS] @ texts.T
        own = owners == np.arange(i, i + len(scores))[:, np.newaxis]
        best = np.where(own, scores, -np.inf).max(1, keepdims=True)
        ranks[i : i + _ROWS] = 1 + (~own & ~(scores < best)).sum(1)
    return ranks


def share_interval(hits: npt.NDArray[np.bool_], images: Ints) -> tuple[float, float]:
    """The 95 percent interval of a share of hits.

    Wilson's score interval (Wilson 1927, JASA 22:209-212) for the effective number of queries: captions of one image
    succeed and fail together, so they count for less than as many independent ones (Korn and Graubard 1998, Survey
    Methodology 24:193-201). It answers how other images of the same kind would do in a gallery of the same size.

    Args:
      hits: bool [m], of each query.
      images: int [m], the image that each query belongs to.

    Returns:
      Least and greatest plausible share, in 0..1.
    """
    return _wilson(float(hits.mean()), _effective(hits, images))


def median_interval(ranks: Ints, images: Ints) -> tuple[float, float]:
    """The 95 percent interval of the median rank: the ranks at the ends of the interval of the share one half.

    (Woodruff 1952, JASA 47:635-646, with `share_interval`'s effective number of queries.)
    """
    ends = _wilson(0.5, _effective(ranks <= np.median(ranks), images))
    low, high = np.quantile(ranks, ends, method="inverted_cdf")
    return float(low), float(high)


def _effective(hits: npt.NDArray[np.bool_], images: Ints) -> float:
    """The number of independent queries whose share of hits would vary as much as this one over samples of images."""
    share = float(hits.mean())
    _, rows, counts = np.unique(images, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return 1.0
    deviations = np.bincount(rows, hits - share)
    variance = len(counts) / (len(counts) - 1) * float((deviations**2).sum()) / len(hits) ** 2
    if variance <= 0.0:  # all alike: nothing is known of how captions of an image agree
        return float(len(counts))
    return min(max(share * (1.0 - share) / variance, 1.0), float(len(hits)))


def _wilson(share: float, count: float) -> tuple[float, float]:
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
