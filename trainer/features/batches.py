"""The training set as features, and the batches that are drawn from it: captions, mixing partners, workers' shares."""

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
    """Features of the training images and of their captions.

    Attributes:
      images: float32 [views, n, image width]; the first view is the plain image.
      texts: float32 [m, text width], one row for each different caption.
      captions: int32 [n, most captions of an image]: rows of `texts`.
      caption_counts: int32 [n]: how many entries of a row of `captions` are used.
    """

    images: Array
    texts: Array
    captions: Array
    caption_counts: Array


def batch_plan(config: TrainConfig, images: int) -> tuple[int, int]:
    """Returns (images a worker in a step, steps an epoch).

    Steps are of equal size, at most the batch size and at least two images a worker; the few images that remain are
    others in every epoch.
    """
    steps = min(-(-images // config.batch_size), images // (2 * config.workers))
    return (images // (steps * config.workers), steps) if steps else (0, 0)


def draw_batch(
    config: TrainConfig, data: TrainingSet, rows: Array, random: np.random.Generator, part: slice
) -> tuple[Array, Array, Array]:
    """Draws views, captions and mixing partners for a global batch, and returns one worker's part of it.

    Every worker calls this with a generator in the same state.

    Args:
      rows: images of the global batch of the first pair of heads; the other pairs have others in their places.
      part: this worker's share of them.

    Returns:
      images float32 [n, pairs, image width], texts float32 [n, pairs, k, text width] and text ids int32 [n, pairs, k].
    """
    drawn = []
    for pair in range(config.ensemble_size):
        own = _order(config.seed, pair, data.images.shape[1])[rows] if pair else rows
        drawn.append(_draw_pair(config, data, own, random, part))
    images, texts, ids = (np.stack(parts, 1) for parts in zip(*drawn, strict=True))
    return images, texts, ids


@functools.lru_cache(maxsize=16)
def _order(seed: int, pair: int, images: int) -> Array:
    """The images in the order of one pair of heads; the same in every step."""
    return np.random.default_rng([seed, pair]).permutation(images)


def _draw_pair(
    config: TrainConfig, data: TrainingSet, rows: Array, random: np.random.Generator, part: slice
) -> tuple[Array, Array, Array]:
    ids = choose_captions(config, data, rows, random)
    views = random.integers(0, len(data.images), len(rows))
    if not config.mixup:
        return data.images[views[part], rows[part]], data.texts[ids[part]], ids[part]
    weight = random.beta(config.mixup, config.mixup, len(rows)).astype(np.float32)
    weight = np.maximum(weight, 1 - weight)[part]  # an example stays nearer to itself than to its partner
    partner = random.permutation(len(rows))[part]
    images, others = data.images[views[part], rows[part]], data.images[views[partner], rows[partner]]
    texts = _mix(data.texts[ids[part]], data.texts[ids[partner]], weight[:, np.newaxis, np.newaxis])
    return _mix(images, others, weight[:, np.newaxis]), texts, ids[part]


def choose_captions(config: TrainConfig, data: TrainingSet, rows: Array, random: np.random.Generator) -> Array:
    """Returns rows of `data.texts`, int32 [n, k]: captions of each image, different ones as far as it has as many."""
    counts = data.caption_counts[rows]
    first = (random.random(len(rows)) * counts).astype(np.int64)
    columns = [first]
    if config.captions_per_image == 2:
        other = 1 + (random.random(len(rows)) * (counts - 1)).astype(np.int64)
        columns.append((first + other) % counts)
    ids: Array = data.captions[rows[:, np.newaxis], np.stack(columns, 1)]
    return ids


def _mix(own: Array, other: Array, weight: Array) -> Array:
    """mixup (Zhang et al. 2017, arXiv:1710.09412) of features."""
    mixed: Array = weight * own + (1 - weight) * other
    return mixed
