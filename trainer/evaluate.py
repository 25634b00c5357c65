"""Retrieval quality of embeddings: R@k, the share of captions whose own image is among the first k hits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

KS = (1, 5, 10)

_ROWS = 1024  # captions compared with all images at once


def text_to_image(
    texts: npt.NDArray[np.float32],
    images: npt.NDArray[np.float32],
    owners: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """Ranks all images for each caption by exact search.

    Args:
      texts: float32 [m, dim], L2-normalised.
      images: float32 [n, dim], L2-normalised; the gallery.
      owners: [m], row of each caption's own image.

    Returns:
      `r_at_1`, `r_at_5`, ... as fractions, `median_rank` (1 is best), and the numbers of `captions` and of images in
      the `gallery`. Images that tie with the own one count as ranked before it.
    """
    ranks = np.empty(len(texts), np.int64)
    for i in range(0, len(texts), _ROWS):
        scores = texts[i : i + _ROWS] @ images.T
        own = scores[np.arange(len(scores)), owners[i : i + _ROWS]]
        ranks[i : i + _ROWS] = (scores >= own[:, np.newaxis]).sum(1)
    found: dict[str, Any] = {f"r_at_{k}": float((ranks <= k).mean()) for k in KS}
    return {**found, "median_rank": float(np.median(ranks)), "captions": len(texts), "gallery": len(images)}
