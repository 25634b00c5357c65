"""Computes ranks, recall at k and the median rank of embeddings by exact search.

R@k is the fraction of queries whose match is among the first k items of the gallery. Items that tie with the match
count as ranked before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

KS = (1, 5, 10)

_ROWS = 512  # queries per block of scores

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def text_to_image(texts: Floats, images: Floats, owners: Ints) -> dict[str, Any]:
    """Ranks all images for each caption.

    Args:
      texts: float32 [m, dim], L2-normalised.
      images: float32 [n, dim], L2-normalised; the gallery.
      owners: int64 [m], row of each caption's own image.

    Returns:
      `r_at_1`, `r_at_5`, ... as fractions, `median_rank` (1 is best), and the numbers of `captions` and of images in
      the `gallery`.
    """
    ranks = text_ranks(texts, images, owners)
    recalls: dict[str, Any] = {f"r_at_{k}": float((ranks <= k).mean()) for k in KS}
    return {**recalls, "median_rank": float(np.median(ranks)), "captions": len(texts), "gallery": len(images)}


def text_ranks(texts: Floats, images: Floats, owners: Ints) -> Ints:
    """Returns int64 [m], the rank (1 is best) of each caption's own image; see `text_to_image`."""
    ranks = np.empty(len(texts), np.int64)
    for i in range(0, len(texts), _ROWS):
        scores = texts[i : i + _ROWS] @ images.T
        own = scores[np.arange(len(scores)), owners[i : i + _ROWS]]
        # Count the items that do not score lower, instead of those that score higher, so that NaN ranks last.
        ranks[i : i + _ROWS] = len(images) - (scores < own[:, np.newaxis]).sum(1)
    return ranks


def image_ranks(texts: Floats, images: Floats, owners: Ints) -> Ints:
    """Returns int64 [n], the rank (1 is best) of each image's best own caption among all captions."""
    ranks = np.empty(len(images), np.int64)
    for i in range(0, len(images), _ROWS):
        scores = images[i : i + _ROWS] @ texts.T
        own = owners == np.arange(i, i + len(scores))[:, np.newaxis]
        best = np.where(own, scores, -np.inf).max(1, keepdims=True)
        ranks[i : i + _ROWS] = 1 + (~own & ~(scores < best)).sum(1)
    return ranks
