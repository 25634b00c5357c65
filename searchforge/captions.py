"""Captioned images: COCO-captions JSON (the format of COCO 2014 and 2017), validated against the image folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchforge.config import DataConfig
from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes
from searchforge.progress import say


@dataclass(frozen=True)
class CaptionedImage:
    """One image with its captions.

    Attributes:
      id: the file name as the captions give it; unique.
      path: the local image file.
      split: as given, or None.
      captions: at least one non-empty string.
    """

    id: str
    path: Path
    split: str | None
    captions: tuple[str, ...]


def load_captions(data: DataConfig) -> list[CaptionedImage]:
    """Reads the captions files of `data`; images come in the order of their ids.

    Raises:
      UsageError: a file is missing or not in the format, an image is missing or named twice, a path leaves the
        image folder, or there is nothing captioned.
    """
    if not data.captions or not data.images:
        raise UsageError(
            "captioned images are needed; set data.captions (--captions, COCO-captions JSON) and data.images (--images)"
        )
    root = Path(data.images)
    if not root.is_dir():
        raise UsageError(f"image folder {root} does not exist; set data.images (--images) to the captions' folder")
    images: dict[str, CaptionedImage] = {}
    for name in data.captions:
        for image in _read_file(Path(name), root):
            if image.id in images:
                raise UsageError(f"image {image.id!r} is in {name} and in an earlier captions file; name it once")
            images[image.id] = image
    _require_files(list(images.values()))
    return [images[key] for key in sorted(images)]


def split_heldout(
    images: Sequence[CaptionedImage], data: DataConfig
) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    """Returns (train, held out). All captions of an image are on one side.

    Where no image carries a split, `data.holdout` of them are held out by a hash of their id.

    Raises:
      UsageError: splits exist, but none is one of `data.train_splits`.
    """
    if all(image.split is None for image in images):
        limit = int(data.holdout * 2**32)
        sides: dict[bool, list[CaptionedImage]] = {True: [], False: []}
        for image in images:
            sides[int(sha256_bytes(image.id.encode())[:8], 16) < limit].append(image)
        return sides[False], sides[True]
    train = [image for image in images if image.split in data.train_splits]
    if not train:
        found = sorted({str(image.split) for image in images})
        raise UsageError(
            f"no image is in a training split: the captions hold {', '.join(found)}, "
            f"data.train_splits is {', '.join(data.train_splits)}"
        )
    return train, [image for image in images if image.split in data.heldout_splits]


def _read_file(path: Path, root: Path) -> list[CaptionedImage]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"captions {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"captions {path} are not JSON: {error}") from None
    try:
        captions: dict[Any, list[str]] = {}
        for annotation in content["annotations"]:
            text = annotation["caption"]
            if isinstance(text, str) and text.strip():
                captions.setdefault(annotation["image_id"], []).append(" ".join(text.split()))
        entries = [(image["id"], str(image["file_name"]), image.get("split")) for image in content["images"]]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"captions {path} are not COCO captions ({error!r} is missing or of another type); "
            'expected {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
        ) from None
    unknown = captions.keys() - {key for key, _, _ in entries}
    if unknown:
        raise UsageError(
            f"captions {path}: {len(unknown)} annotations name image ids that are not listed, "
            f"such as {sorted(map(str, unknown))[:3]}"
        )
    images: dict[str, CaptionedImage] = {}
    for key, name, split in entries:
        if key not in captions:
            continue
        if name in images:
            raise UsageError(f"captions {path}: image {name!r} is listed twice; every image has one entry")
        image = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UsageError(f"captions {path}: file name {name!r} leaves the image folder {root}")
        images[name] = CaptionedImage(name, image, split, tuple(captions[key]))
    blank = len(content["annotations"]) - sum(map(len, captions.values()))
    if blank or len(images) < len(entries):
        uncaptioned = len(entries) - len(images)
        say(f"captions {path}: {uncaptioned} images without a caption and {blank} empty captions are not used")
    if not images:
        raise UsageError(f"captions {path} caption no image; expected at least one annotation with text")
    return list(images.values())


def _require_files(images: Sequence[CaptionedImage]) -> None:
    present: dict[Path, set[str]] = {}
    for folder in {image.path.parent for image in images}:
        present[folder] = {entry.name for entry in os.scandir(folder) if entry.is_file()} if folder.is_dir() else set()
    missing = [image for image in images if image.path.name not in present[image.path.parent]]
    if missing:
        shown = ", ".join(repr(image.id) for image in missing[:3])
        raise UsageError(
            f"{len(missing)} of {len(images)} captioned images are missing in the image folder, such as {shown}; "
            "check --images, or remove them from the captions"
        )
