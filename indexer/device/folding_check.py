"""Verifies that an encoder with a folded query map gives the same dot products as the original encoder.

Runs in the worker process and opens both files with the Task Library, as a device would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.corpus.text_embedder import embed_text, open_text_embedder
from searchforge.errors import JobError

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
    from tflite_support.task import core, vision

    try:
        embedder = vision.ImageEmbedder.create_from_options(
            vision.ImageEmbedderOptions(core.BaseOptions(file_name=str(path), num_threads=1))
        )
    except (RuntimeError, ValueError) as error:
        raise JobError(f"the Task Library cannot run {path}: {error}") from error
    generator = np.random.default_rng(0)
    found: list[Any] = []
    for side in _SIDES:
        pixels = generator.integers(
            0, 256, (side, side, 3), np.uint8
        )  # must outlive the call, which holds no reference to it
        result = embedder.embed(vision.TensorImage.create_from_array(pixels))
        found.append(np.array(result.embeddings[0].feature_vector.value, np.float32))
    return np.stack(found)
