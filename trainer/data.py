"""Loads the captioned images of a training run, splits them, and drops and counts the unusable ones."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from searchforge.captions.dataset import (
    CaptionedImage,
    Captions,
    Split,
    image_reader,
    load_captions,
    split_heldout,
)
from searchforge.captions.image_reader import ImageReader
from searchforge.config import DEFAULT_MAX_PIXELS, Config
from searchforge.errors import JobError, UsageError
from searchforge.image_decoding import RejectedInput
from searchforge.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_CALIBRATION_TEXTS = 1000
"""Maximum number of captions used to calibrate an 8-bit text encoder."""


UNREADABLE_ON_WORKER = "unseen"
"""Rejection reason: the worker that runs the tower cannot open the file."""


@dataclass(frozen=True)
class Rejection:
    """An input without features.

    Attributes:
      key: SHA-256 of the input's content.
      reason: A reason of RejectedInput, or UNREADABLE_ON_WORKER.
      detail: Explanation for the user.
    """

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class TrainingData:
    """Captioned images, split into training and held-out images.

    Attributes:
      train, heldout: Images of each side, with their content hashes.
      captions, split: The captions as read, and the result of splitting them.
      rejected: `id`, `reason` and `detail` of each unreadable image.
      reader: Reads the images.
    """

    train: list[CaptionedImage]
    heldout: list[CaptionedImage]
    captions: Captions
    split: Split
    rejected: list[dict[str, str]]
    reader: ImageReader

    @property
    def images(self) -> list[CaptionedImage]:
        return self.train + self.heldout

    def report(self) -> dict[str, Any]:
        """Returns the counts for the encoder's report, in JSON types."""
        return {
            "images": {
                "train": len(self.train),
                "heldout": len(self.heldout),
                "unused": self.split.unused,
                "merged": self.split.merged,
                "leaked": self.split.leaked,
                "rejected": self.rejected,
            },
            "captions": len({text for image in self.images for text in image.captions}),
            "caption_rows": {
                "read": self.captions.rows,
                "repeated": self.captions.repeated,
                "cut": self.captions.cut,
                "rejected": self.captions.rejected,
            },
        }


def load_data(config: Config) -> TrainingData:
    """Loads the captioned images of `config.data`.

    Raises:
      UsageError: See `load_captions` and `split_heldout`.
    """
    captions = load_captions(config)
    split = split_heldout(captions, config)
    unreadable = [{"id": image.id, "reason": "unreadable", "detail": detail} for image, detail in split.unreadable]
    return TrainingData(split.train, split.heldout, captions, split, unreadable, image_reader(config))


def reread_pixels(uri: str, sha256: str, reader: ImageReader, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Reads an image whose features were extracted earlier in the same run.

    Args:
      uri, sha256: Path or URI of the image, and the hash of its bytes.

    Returns:
      uint8 [height, width, 3].

    Raises:
      JobError: The image has become unreadable.
    """
    try:
        return preprocessing.pixels(reader.read(uri, sha256), DEFAULT_MAX_PIXELS)
    except (RejectedInput, OSError) as error:
        raise JobError(f"{uri} changed during training: {error}; run the command again") from error


def subsample(items: Sequence[Item], limit: int) -> Sequence[Item]:
    """Returns at most `limit` items, evenly spaced."""
    return items[:: max(1, len(items) // limit)][:limit]


def calibration_texts(train: Sequence[CaptionedImage]) -> Sequence[str]:
    """Returns the training captions that calibrate an 8-bit text encoder."""
    return subsample([text for image in train for text in image.captions], MAX_CALIBRATION_TEXTS)


def log_unused_images(data: TrainingData) -> None:
    """Logs how many images are unused, dropped or merged, and whether none is held out."""
    split = data.split
    if split.unused:
        logger.info(
            f"  {split.unused} images belong to other splits and are not used (data.train_splits, data.heldout_splits)"
        )
    if split.leaked:
        logger.info(f"  dropped {split.leaked} training images with the same content as a held-out image")
    if split.merged:
        logger.info(f"  merged {split.merged} images into others with the same content, including their captions")
    if not data.heldout:
        logger.info("  no image is held out, so retrieval is not measured (data.heldout_splits, data.holdout)")


def drop_rejected(data: TrainingData, rejections: Sequence[Rejection], max_fraction: float) -> TrainingData:
    """Returns the data without the images that have no features.

    Args:
      rejections: Rejected images; their keys are content hashes.
      max_fraction: Maximum fraction of all images that may be rejected.

    Raises:
      UsageError: More images than that are rejected.
    """
    by_hash = {rejection.key: rejection for rejection in rejections}
    rejected = [*data.rejected]
    for image in data.images:
        if rejection := by_hash.get(image.content_hash):
            rejected.append({"id": image.id, "reason": rejection.reason, "detail": rejection.detail})
    if not rejected:
        return data
    reasons = ", ".join(sorted({item["reason"] for item in rejected}))
    total = len(data.images) + len(data.rejected)
    summary = f"{len(rejected)} of {total} images cannot be read ({reasons}), for example {rejected[0]['id']!r}"
    if len(rejected) > max_fraction * total:
        raise UsageError(
            f"{summary}, which exceeds data.max_reject_fraction ({max_fraction:g}); "
            "repair or remove them, or raise the limit"
        )
    logger.info(f"  {summary}; they are skipped and listed in the report")
    train, heldout = (
        [image for image in side if image.content_hash not in by_hash] for side in (data.train, data.heldout)
    )
    return dataclasses.replace(data, train=train, heldout=heldout, rejected=rejected)
