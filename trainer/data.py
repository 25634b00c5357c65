"""The captioned images of a training run: loaded, split, and without what cannot be used, which is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from searchforge.captions.dataset import CaptionedImage, Captions, Split, load_captions, split_heldout
from searchforge.config import DEFAULT_MAX_PIXELS, Config
from searchforge.console import progress
from searchforge.errors import JobError, UsageError
from searchforge.preprocessing import Preprocessing, RejectedInput

Item = TypeVar("Item")

MAX_CALIBRATION_TEXTS = 1000
"""Most captions that the ranges of an 8-bit text encoder are observed on."""


UNREADABLE_ON_WORKER = "unseen"
"""Reason of a rejection: the file cannot be opened where the tower runs."""


@dataclass(frozen=True)
class Rejection:
    """An input that has no features; reason and detail as of RejectedInput, or UNREADABLE_ON_WORKER."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class TrainingData:
    """Captioned images of both sides.

    Attributes:
      train, heldout: with their content hashes.
      captions, split: what was read, and how it was split.
      rejected: id, reason and detail of the images that cannot be read.
    """

    train: list[CaptionedImage]
    heldout: list[CaptionedImage]
    captions: Captions
    split: Split
    rejected: list[dict[str, str]]

    @property
    def images(self) -> list[CaptionedImage]:
        return self.train + self.heldout

    def report(self) -> dict[str, Any]:
        """Returns the counts of the encoder's report, in JSON types."""
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
      UsageError: see `load_captions` and `split_heldout`.
    """
    captions = load_captions(config)
    split = split_heldout(captions, config)
    unreadable = [{"id": image.id, "reason": "unreadable", "detail": detail} for image, detail in split.unreadable]
    return TrainingData(split.train, split.heldout, captions, split, unreadable)


def reread_pixels(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Returns the pixels, uint8 [height, width, 3], of an image whose features were computed before.

    Raises:
      JobError: the image cannot be read any more.
    """
    try:
        return preprocessing.pixels(path.read_bytes(), DEFAULT_MAX_PIXELS)
    except (RejectedInput, OSError) as error:
        raise JobError(f"{path} changed while training ran: {error}; start again") from error


def subsample(items: Sequence[Item], most: int) -> Sequence[Item]:
    """Returns at most that many of the items, evenly chosen."""
    return items[:: max(1, len(items) // most)][:most]


def calibration_texts(train: Sequence[CaptionedImage]) -> Sequence[str]:
    """Returns the captions of training images that the ranges of an 8-bit text encoder are observed on."""
    return subsample([text for image in train for text in image.captions], MAX_CALIBRATION_TEXTS)


def report_unused_images(data: TrainingData) -> None:
    """Says what of the images is not used as they are."""
    split = data.split
    if split.unused:
        progress.say(
            f"  {split.unused} images are of other splits and not used (data.train_splits, data.heldout_splits)"
        )
    if split.leaked:
        progress.say(f"  {split.leaked} training images are dropped: their content is held out too")
    if split.merged:
        progress.say(f"  {split.merged} images are copies of others by content, which have their captions too")
    if not data.heldout:
        progress.say("  no image is held out, so retrieval is not measured (data.heldout_splits, data.holdout)")


def drop_rejected(data: TrainingData, unreadable: Sequence[Rejection], max_fraction: float) -> TrainingData:
    """Returns the data without images that have no features.

    Args:
      unreadable: by content hash.
      max_fraction: more unreadable images than this share of all are an error.

    Raises:
      UsageError: there are more.
    """
    reasons = {item.key: item for item in unreadable}
    rejected = [*data.rejected]
    for image in data.images:
        if item := reasons.get(image.content_hash):
            rejected.append({"id": image.id, "reason": item.reason, "detail": item.detail})
    if not rejected:
        return data
    kinds = ", ".join(sorted({item["reason"] for item in rejected}))
    total = len(data.images) + len(data.rejected)
    summary = f"{len(rejected)} of {total} images cannot be read ({kinds}), such as {rejected[0]['id']!r}"
    if len(rejected) > max_fraction * total:
        raise UsageError(
            f"{summary}, more than data.max_reject_fraction ({max_fraction:g}); mend or remove them, or raise it"
        )
    progress.say(f"  {summary}; they are left out and listed in the report")
    train, heldout = (
        [image for image in side if image.content_hash not in reasons] for side in (data.train, data.heldout)
    )
    return dataclasses.replace(data, train=train, heldout=heldout, rejected=rejected)
