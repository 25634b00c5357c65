"""Draws training batches from cached features: augmentations, captions, mixup partners and each worker's share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.config import TrainConfig

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TrainingSet:
    """Features of the training images and their captions.

    Attributes:
      images: float32 [augmentations, n, image width]; the first entry is the unaugmented images.
      texts: float32 [m, text width], one row per distinct caption.
      captions: int32 [n, maximum captions per image], rows of `texts`.
      caption_counts: int32 [n], number of valid entries in each row of `captions`.
    """

    images: Array
    texts: Array
    captions: Array
    caption_counts: Array


def batch_plan(config: TrainConfig, images: int) -> tuple[int, int]:
    """Returns (images per worker and step, steps per epoch).

    All steps have the same size: at most the batch size, and at least two images per worker. The few remaining images
    are skipped, and are different ones in every epoch.
    """
    steps = min(-(-images // config.batch_size), images // (2 * config.workers))
    return (images // (steps * config.workers), steps) if steps else (0, 0)


def draw_batch(
    config: TrainConfig, data: TrainingSet, rows: Array, random: np.random.Generator, part: slice
) -> tuple[Array, Array, Array]:
    """Draws augmentations, captions and mixup partners for a global batch, and returns one worker's part of it.

    Every worker must call this with a generator in the same state.

    Args:
      rows: Images of the first ensemble member's global batch; the other members permute the images.
      part: This worker's part of the rows.

    Returns:
      images float32 [n, members, image width], texts float32 [n, members, k, text width] and text ids
      int32 [n, members, k].
    """
    drawn = []
    for member in range(config.ensemble_size):
        own = _permutation(config.seed, member, data.images.shape[1])[rows] if member else rows
        drawn.append(_draw_member(config, data, own, random, part))
    images, texts, ids = (np.stack(parts, 1) for parts in zip(*drawn, strict=True))
    return images, texts, ids


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, member: int, images: int) -> Array:
    """Returns the image order of one ensemble member, which is the same in every step."""
    return np.random.default_rng([seed, member]).permutation(images)


def _draw_member(
    config: TrainConfig, data: TrainingSet, rows: Array, random: np.random.Generator, part: slice
) -> tuple[Array, Array, Array]:
    ids = choose_captions(config, data, rows, random)
    augmentations = random.integers(0, len(data.images), len(rows))
    if not config.mixup:
        return data.images[augmentations[part], rows[part]], data.texts[ids[part]], ids[part]
    weight = random.beta(config.mixup, config.mixup, len(rows)).astype(np.float32)
    weight = np.maximum(weight, 1 - weight)[part]  # an example keeps at least half of its own weight
    partner = random.permutation(len(rows))[part]
    images = data.images[augmentations[part], rows[part]]
    partner_images = data.images[augmentations[partner], rows[partner]]
    texts = _mix(data.texts[ids[part]], data.texts[ids[partner]], weight[:, np.newaxis, np.newaxis])
    return _mix(images, partner_images, weight[:, np.newaxis]), texts, ids[part]


def choose_captions(config: TrainConfig, data: TrainingSet, rows: Array, random: np.random.Generator) -> Array:
    """Draws k captions per image, distinct if the image has at least k.

    Returns:
      int32 [n, k], rows of `data.texts`.
    """
    counts = data.caption_counts[rows]
    first = (random.random(len(rows)) * counts).astype(np.int64)
    columns = [first]
    if config.captions_per_image == 2:
        offset = 1 + (random.random(len(rows)) * (counts - 1)).astype(np.int64)
        columns.append((first + offset) % counts)
    ids: Array = data.captions[rows[:, np.newaxis], np.stack(columns, 1)]
    return ids


def _mix(features: Array, partners: Array, weight: Array) -> Array:
    """Applies mixup (Zhang et al. 2017, arXiv:1710.09412) to features."""
    mixed: Array = weight * features + (1 - weight) * partners
    return mixed
