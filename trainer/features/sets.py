"""Gathers the features of a training run: training images with augmentations, held-out images, and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.captions.dataset import CaptionedImage
from searchforge.hashing import sha256_bytes
from trainer.data import Rejection, TrainingData
from trainer.features.augmentations import AUGMENTATIONS, UNAUGMENTED
from trainer.features.batches import TrainingSet
from trainer.features.cache import FeatureCache
from trainer.features.extraction import ExtractionRequest, Features, extract
from trainer.ray_cluster import Allocation
from trainer.towers import ImageTower, TextTower, TowerSpec

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]


@dataclass(frozen=True)
class FeatureSets:
    """Features keyed by the content hash of an image or the `caption_key` of a caption.

    Attributes:
      train: Features of training images, with all augmentations.
      heldout: Features of held-out images, unaugmented.
      captions: Features of the captions of all images.
    """

    train: Features
    heldout: Features
    captions: Features

    @property
    def rejected(self) -> list[Rejection]:
        """Images without features."""
        return self.train.rejected + self.heldout.rejected

    @property
    def image_seconds(self) -> float:
        """Seconds of image feature extraction; see Features."""
        return self.train.seconds + self.heldout.seconds

    def training_set(self, data: TrainingData) -> TrainingSet:
        """Returns the features of the training images of `data`, all of which must have features."""
        rows = [[self.captions.rows[caption_key(text)] for text in dict.fromkeys(i.captions)] for i in data.train]
        used = sorted({row for caption_rows in rows for row in caption_rows})
        position = {row: i for i, row in enumerate(used)}
        table = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for i, caption_rows in enumerate(rows):
            table[i, : len(caption_rows)] = [position[row] for row in caption_rows]
        image_rows = [self.train.rows[image.content_hash] for image in data.train]
        return TrainingSet(
            images=np.stack([values[image_rows] for values in self.train.by_augmentation.values()]),
            texts=self.captions.values[used],
            captions=table,
            caption_counts=np.array([len(caption_rows) for caption_rows in rows], np.int32),
        )

    def training_texts(self, data: TrainingData) -> list[str]:
        """Returns the training captions in the order of the rows of `TrainingSet.texts`."""
        rows = {self.captions.rows[caption_key(text)]: text for image in data.train for text in image.captions}
        return [text for _, text in sorted(rows.items())]

    def heldout_images(self, data: TrainingData) -> Array:
        """Returns the features of the held-out images, float32 [n, width]."""
        return self.heldout.values[[self.heldout.rows[image.content_hash] for image in data.heldout]]

    def heldout_captions(self, data: TrainingData) -> tuple[list[str], Array, Array]:
        """Returns the held-out captions, their features float32 [m, width], and their images' rows int64 [m]."""
        pairs = [(i, text) for i, image in enumerate(data.heldout) for text in image.captions]
        values = self.captions.values[[self.captions.rows[caption_key(text)] for _, text in pairs]]
        return [text for _, text in pairs], values, np.array([owner for owner, _ in pairs], np.int64)


def extract_all(
    allocation: Allocation,
    data: TrainingData,
    towers: tuple[ImageTower, TextTower],
    specs: tuple[TowerSpec, TowerSpec],
    cache: Path,
    augmentations: int,
    weights: tuple[Weights, Weights] | None = None,
) -> FeatureSets:
    """Extracts all features that are not cached; see `extract`.

    Args:
      allocation: See `extract`.
      cache: Folder of the feature cache.
      data, towers, specs, augmentations, weights: See `extraction_requests`.
    """
    requests = extraction_requests(data, towers, specs, augmentations, weights)
    return FeatureSets(*extract(requests, FeatureCache(cache), allocation))


def extraction_requests(
    data: TrainingData,
    towers: tuple[ImageTower, TextTower],
    specs: tuple[TowerSpec, TowerSpec],
    augmentations: int,
    weights: tuple[Weights, Weights] | None = None,
) -> tuple[ExtractionRequest, ExtractionRequest, ExtractionRequest]:
    """Returns the requests of a training run: training images, held-out images and captions.

    Args:
      towers, specs: Image tower and text tower.
      augmentations: Number of augmentations of the training images, including the unaugmented image.
      weights: Weights of fine-tuned towers.
    """
    image_key = f"{towers[0].fingerprint} {towers[0].preprocessing}"
    image_weights, text_weights = weights or ({}, {})

    def images(side: Sequence[CaptionedImage], names: Sequence[str]) -> ExtractionRequest:
        uris = {image.content_hash: image.uri for image in side}
        return ExtractionRequest(specs[0], image_key, uris, names, image_weights, data.reader)

    texts = {caption_key(text): text for image in data.images for text in image.captions}
    return (
        images(data.train, tuple(AUGMENTATIONS)[:augmentations]),
        images(data.heldout, (UNAUGMENTED,)),
        ExtractionRequest(specs[1], towers[1].fingerprint, texts, weights=text_weights),
    )


def caption_key(text: str) -> str:
    """Returns the key of a caption in the feature cache."""
    return sha256_bytes(text.encode())
