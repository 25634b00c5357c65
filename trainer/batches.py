"""The training set as features, and the batches that are drawn from it: captions, mixing partners, workers' shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.config import TrainConfig

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TrainingSet:
    """Features of the training images and of their captions.

    Attributes:
      images: float32 [n, image width].
      texts: float32 [m, text width], one row for each different caption.
      captions: int32 [n, most captions of an image]: rows of `texts`.
      caption_counts: int32 [n]: how many entries of a row of `captions` are used.
    """

    images: Array
    texts: Array
    captions: Array
    caption_counts: Array


def batch_plan(config: TrainConfig, images: int) -> tuple[int, int]:
    """Returns (images a worker in a step, steps an epoch). The rest of an epoch's order is left to other epochs."""
    share = min(config.batch_size, images) // config.workers
    return share, images // (share * config.workers) if share else 0


def draw(
    config: TrainConfig, data: TrainingSet, rows: Array, random: np.random.Generator, part: slice
) -> tuple[Array, Array, Array]:
    """Draws captions and mixing partners for a global batch, and returns one worker's part of it.

    Every worker calls this with a generator in the same state.

    Args:
      rows: images of the global batch.
      part: this worker's share of them.

    Returns:
      images float32 [n, image width], texts float32 [n, k, text width] and text ids int32 [n, k].
    """
    counts = data.caption_counts[rows]
    first = (random.random(len(rows)) * counts).astype(np.int64)
    # Further captions are different ones, as far as an image has as many.
    columns = [first]
    if config.captions_per_image == 2:
        other = 1 + (random.random(len(rows)) * (counts - 1)).astype(np.int64)
        columns.append((first + other) % counts)
    ids = data.captions[rows[:, np.newaxis], np.stack(columns, 1)]
    if not config.mixup:
        return data.images[rows[part]], data.texts[ids[part]], ids[part]
    weight = random.beta(config.mixup, config.mixup, len(rows)).astype(np.float32)
    weight = np.maximum(weight, 1 - weight)[part]  # an example stays nearer to itself than to its partner
    partner = random.permutation(len(rows))[part]
    images = _mix(data.images[rows[part]], data.images[rows[partner]], weight[:, np.newaxis])
    texts = _mix(data.texts[ids[part]], data.texts[ids[partner]], weight[:, np.newaxis, np.newaxis])
    return images, texts, ids[part]


def _mix(own: Array, other: Array, weight: Array) -> Array:
    """mixup (Zhang et al. 2017, arXiv:1710.09412) of features."""
    mixed: Array = weight * own + (1 - weight) * other
    return mixed
