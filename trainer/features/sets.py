"""The features that one training run works with: of training images in all views, of held-out ones, of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.captions.dataset import CaptionedImage
from searchforge.config import TrainConfig
from searchforge.hashing import sha256_bytes
from trainer.data import Rejection, TrainingData
from trainer.features.augmentations import AUGMENTATIONS, UNAUGMENTED
from trainer.features.batches import TrainingSet
from trainer.features.cache import FeatureCache
from trainer.features.extraction import ExtractionRequest, Features, extract
from trainer.towers import ImageTower, TextTower, TowerSpec

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]


@dataclass(frozen=True)
class FeatureSets:
    """Features by the content hash of images and by `caption_key` of captions.

    Attributes:
      train: of training images, in all views.
      heldout: of held-out images, the plain view.
      captions: of both sides.
    """

    train: Features
    heldout: Features
    captions: Features

    @property
    def rejected(self) -> list[Rejection]:
        """Images that have no features."""
        return self.train.rejected + self.heldout.rejected

    @property
    def image_seconds(self) -> float:
        """Of the image tower; see Features."""
        return self.train.seconds + self.heldout.seconds

    def training_set(self, data: TrainingData) -> TrainingSet:
        """Returns the training side of `data`, whose images all have features."""
        rows = [[self.captions.rows[caption_key(text)] for text in dict.fromkeys(i.captions)] for i in data.train]
        used = sorted({row for caption_rows in rows for row in caption_rows})
        position = {row: i for i, row in enumerate(used)}
        table = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for i, caption_rows in enumerate(rows):
            table[i, : len(caption_rows)] = [position[row] for row in caption_rows]
        image_rows = [self.train.rows[image.content_hash] for image in data.train]
        return TrainingSet(
            images=np.stack([values[image_rows] for values in self.train.views.values()]),
            texts=self.captions.values[used],
            captions=table,
            caption_counts=np.array([len(caption_rows) for caption_rows in rows], np.int32),
        )

    def training_texts(self, data: TrainingData) -> list[str]:
        """Returns the captions in the order of the training set's rows."""
        rows = {self.captions.rows[caption_key(text)]: text for image in data.train for text in image.captions}
        return [text for _, text in sorted(rows.items())]

    def heldout_images(self, data: TrainingData) -> Array:
        """Returns the held-out images' features, float32 [n, width]."""
        return self.heldout.values[[self.heldout.rows[image.content_hash] for image in data.heldout]]

    def heldout_captions(self, data: TrainingData) -> tuple[list[str], Array, Array]:
        """Returns the held-out captions, their features, float32 [m, width], and rows of their images, int64 [m]."""
        pairs = [(i, text) for i, image in enumerate(data.heldout) for text in image.captions]
        values = self.captions.values[[self.captions.rows[caption_key(text)] for _, text in pairs]]
        return [text for _, text in pairs], values, np.array([owner for owner, _ in pairs], np.int64)


def extract_all(
    settings: TrainConfig,
    data: TrainingData,
    towers: tuple[ImageTower, TextTower],
    specs: tuple[TowerSpec, TowerSpec],
    cache: Path,
    views: int,
    weights: tuple[Weights, Weights] | None = None,
) -> FeatureSets:
    """Runs the towers on everything that is not cached; see `features.extract`.

    Args:
      cache: folder for all towers' features.
      data, towers, specs, views, weights: see `extraction_requests`.
    """
    wanted = extraction_requests(data, towers, specs, views, weights)
    return FeatureSets(*extract(wanted, FeatureCache(cache), settings.workers))


def extraction_requests(
    data: TrainingData,
    towers: tuple[ImageTower, TextTower],
    specs: tuple[TowerSpec, TowerSpec],
    views: int,
    weights: tuple[Weights, Weights] | None = None,
) -> tuple[ExtractionRequest, ExtractionRequest, ExtractionRequest]:
    """Returns what a training needs the features of: training images, held-out images and captions.

    Args:
      towers, specs: of images and of texts.
      views: of the training images.
      weights: of tuned towers.
    """
    image_key = f"{towers[0].fingerprint} {towers[0].preprocessing}"
    image_weights, text_weights = weights or ({}, {})

    def images(side: Sequence[CaptionedImage], names: Sequence[str]) -> ExtractionRequest:
        paths = {image.content_hash: str(image.path) for image in side}
        return ExtractionRequest(specs[0], image_key, paths, names, image_weights)

    texts = {caption_key(text): text for image in data.images for text in image.captions}
    return (
        images(data.train, tuple(AUGMENTATIONS)[:views]),
        images(data.heldout, (UNAUGMENTED,)),
        ExtractionRequest(specs[1], towers[1].fingerprint, texts, weights=text_weights),
    )


def caption_key(text: str) -> str:
    """Names a caption in the cache of features."""
    return sha256_bytes(text.encode())
