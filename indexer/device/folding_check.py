"""Proves that a packed encoder with its map gives the same dot products as the encoder that it was made of.

Runs in the worker process: both files are opened with the Task Library, as a device would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.corpus.text_embedder import embed_text, open_text_embedder
from searchforge.errors import JobError

TOLERANCE = 1e-3
"""How far a dot product with a vector of length 1 may be off."""

_TEXTS = ("", "a", "a dog on a beach", "two children playing in the snow", "people at a table with food " * 20)
_SIDES = (8, 64, 300)


def require_equal_products(encoder: Path, packed: Path, transform: npt.NDArray[np.float32], images: bool) -> float:
    """Embeds probes with both files and compares their dot products with any mapped vector of length 1.

    Args:
      transform: [dim, dim] float32, the map of corpus vectors: (A x) . q' = x . (A^T q').

    Returns:
      The largest difference found.

    Raises:
      JobError: it is larger than TOLERANCE, or a file does not open.
    """
    embed = _embed_images if images else _embed_texts
    plain, mapped = embed(encoder), embed(packed)
    worst = float(np.linalg.norm(mapped @ transform - plain, axis=1).max())
    if not worst <= TOLERANCE:
        raise JobError(
            f"dot products of {packed.name} are off by up to {worst:.2g} from those of {encoder.name}, expected at "
            f"most {TOLERANCE}: the map cannot be folded into this encoder; set index.query_aware to false"
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
        pixels = generator.integers(0, 256, (side, side, 3), np.uint8)  # must outlive the call, which does not keep it
        result = embedder.embed(vision.TensorImage.create_from_array(pixels))
        found.append(np.array(result.embeddings[0].feature_vector.value, np.float32))
    return np.stack(found)
