"""Verifies that an encoder with a folded query map gives the same dot products as the original encoder.

Runs in the worker process and opens both files with the Task Library, as a device would.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchforge.errors import JobError
from searchforge.processes.task_library import embed_image, embed_text, open_image_embedder, open_text_embedder

TOLERANCE = 1e-3
"""Maximum difference of dot products with a vector of length 1."""

_TEXTS = ("", "a", "a dog on a beach", "two children playing in the snow", "people at a table with food " * 20)
_SIDES = (8, 64, 300)


def require_equal_dot_products(encoder: Path, folded: Path, transform: npt.NDArray[np.float32], images: bool) -> float:
    """Embeds probes with both files and bounds the difference of their dot products with vectors of length 1.

    Args:
      transform: [dim, dim] float32, the map A of corpus vectors: (A x) . q' = x . (A^T q').

    Returns:
      The largest difference.

    Raises:
      JobError: The difference exceeds TOLERANCE, or the Task Library cannot run a file.
    """
    embed = _embed_images if images else _embed_texts
    plain, mapped = embed(encoder), embed(folded)
    worst = float(np.linalg.norm(mapped @ transform - plain, axis=1).max())
    if not worst <= TOLERANCE:
        raise JobError(
            f"dot products of {folded.name} differ by up to {worst:.2g} from those of {encoder.name}, more than "
            f"{TOLERANCE}: the query map cannot be folded into this encoder; set index.query_aware to false"
        )
    return worst


def _embed_texts(path: Path) -> npt.NDArray[np.float32]:
    embedder = open_text_embedder(path)
    return np.stack([embed_text(embedder, text) for text in _TEXTS])


def _embed_images(path: Path) -> npt.NDArray[np.float32]:
    embedder, generator = open_image_embedder(path), np.random.default_rng(0)
    return np.stack([embed_image(embedder, generator.integers(0, 256, (side, side, 3), np.uint8)) for side in _SIDES])
