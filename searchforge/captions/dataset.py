"""Captioned images: read from captions files, checked against the image folder, and split without leakage."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from searchforge.artifacts.workspace import Workspace
from searchforge.captions.caption_files import find_captions_files
from searchforge.captions.content_hashes import content_hashes
from searchforge.captions.formats import CaptionRow, CaptionRows, Reject
from searchforge.captions.image_folder import ImageFolder, open_image_folder
from searchforge.captions.image_reader import ImageReader
from searchforge.captions.tfrecords import is_tfrecord, read_unpacked, unpack
from searchforge.config import Config, DataConfig
from searchforge.errors import JobError, UsageError
from searchforge.storage.bounded_cache import BoundedCache
from searchforge.storage.files import atomic_write

logger = logging.getLogger(__name__)

MAX_CAPTION = 4000
"""Characters after which captions are truncated. No text tower reads that many."""

_EXAMPLES = 3


@dataclass(frozen=True)
class CaptionedImage:
    """One image with its captions.

    Attributes:
      id: Path relative to the image folder.
      uri: Path of the image file, or its URI gs://bucket/name.
      split: Split in the captions file, or None.
      captions: One or more distinct, non-empty strings.
      categories: Categories in the captions file, if any.
      content_hash: SHA-256 of the image's bytes, set by `split_heldout`.
    """

    id: str
    uri: str
    split: str | None
    captions: tuple[str, ...]
    categories: tuple[str, ...] = ()
    content_hash: str = ""


@dataclass(frozen=True)
class Captions:
    """Content of captions files. Every caption is used, repeated or rejected: the counts add up to `rows`.

    Attributes:
      folder: Folder of the images.
      images: Images in the order of their ids; an image with several splits occurs once for each.
      rows: Number of captions in the files.
      repeated: Number of captions that repeat another one of the same image.
      rejected: Number of unusable captions by reason.
      cut: Number of captions that were longer than MAX_CAPTION.
    """

    folder: ImageFolder
    images: list[CaptionedImage]
    rows: int
    repeated: int
    rejected: dict[str, int]
    cut: int


@dataclass(frozen=True)
class Split:
    """Training and held-out images; no file content occurs twice.

    Attributes:
      train, heldout: Images with their content hashes.
      unused: Number of images in other splits.
      merged: Number of images merged into another one of the same side with the same file content.
      leaked: Number of training images dropped because their content is held out.
      unreadable: Images that cannot be read, each with the reason.
    """

    train: list[CaptionedImage]
    heldout: list[CaptionedImage]
    unused: int
    merged: int
    leaked: int
    unreadable: list[tuple[CaptionedImage, str]]


def has_captions(data: DataConfig) -> bool:
    """Returns whether captioned images are configured."""
    return bool(data.captions and (data.images or _contain_images(data)))


def _contain_images(data: DataConfig) -> bool:
    return all(is_tfrecord(name) for name in data.captions)


def image_folder(config: Config) -> str:
    """Returns the folder of the captioned images: `data.images`, or the folder that TFRecords are unpacked to.

    Raises:
      UsageError: Neither is configured, or TFRecords cannot be read.
    """
    data = config.data
    if not has_captions(data):
        raise UsageError(
            "captioned images are required; set data.captions (--captions: COCO captions JSON, CSV, TSV, JSON Lines or "
            "TFRecords) and, except for TFRecords, data.images (--images)"
        )
    if not _contain_images(data):
        return str(data.images)
    cache = _cache(config)
    return str(unpack([file.path for file in find_captions_files(data.captions, cache)], cache))


def image_reader(config: Config) -> ImageReader:
    """Returns the reader of captioned images."""
    return ImageReader(BoundedCache(Workspace(config.workspace).cache("images"), config.data.max_cache_bytes))


def corpus_source(config: Config) -> str:
    """Returns the corpus to search: `corpus.source`, or the folder of the captioned images.

    Raises:
      UsageError: Neither is configured.
    """
    source = config.corpus.source or config.data.images
    if source:
        return source
    if has_captions(config.data):
        return image_folder(config)
    raise UsageError(
        "no corpus is configured; set corpus.source (--corpus) or data.images (--images) to a folder, a glob or a "
        "text file of paths or URIs"
    )


def load_captions(config: Config) -> Captions:
    """Reads the captions files of `config.data`. Unusable captions are counted, and listed in the workspace's cache.

    Raises:
      UsageError: A file or the folder is missing, a file has an unsupported format, no image has a caption, or more
        than `data.max_reject_fraction` of the captions are unusable.
      JobError: A bucket may not be read or cannot be reached.
    """
    folder = open_image_folder(image_folder(config), image_reader(config))
    found: dict[tuple[str, str | None], _ImageEntry] = {}
    rejects: list[Reject] = []
    rows = repeated = cut = 0
    for item in _rows(config, folder):
        row = _relative_to_root(item, folder) if isinstance(item, CaptionRow) else item
        if isinstance(row, Reject):
            rows += row.captions
            rejects.append(row)
            continue
        rows += 1
        cut += len(row.caption) > MAX_CAPTION
        text = row.caption[:MAX_CAPTION].rstrip()
        entry = found.setdefault((row.image, row.split), _ImageEntry(row.place))
        repeated += text in entry.captions
        entry.captions[text] = None
        entry.categories.update(dict.fromkeys(row.categories))
    images = []
    for (name, split), entry in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or "")):
        if fault := folder.fault(PurePosixPath(name)):
            rejects.append(Reject(entry.place, *fault, captions=len(entry.captions)))
        else:
            uri = folder.uri(name)
            images.append(CaptionedImage(name, uri, split, tuple(entry.captions), tuple(entry.categories)))
    if cut:
        logger.info(f"captions: {cut} longer than {MAX_CAPTION} characters are truncated")
    return Captions(folder, images, rows, repeated, _report_rejects(rejects, rows, len(images), config), cut)


def split_heldout(captions: Captions, config: Config, training: bool = True) -> Split:
    """Splits images into training and held-out images by content.

    Images with the same content are merged, with all their captions. Content with a held-out split is held out even if
    it also has other splits. If no image has a held-out split, a fraction `data.holdout` of the contents is held out by
    hash, so that the choice does not change when images are added or renamed.

    Args:
      training: Whether training images are required.

    Raises:
      UsageError: Splits exist, but no image remains in `data.train_splits`.
    """
    data = config.data
    plain = all(image.split is None for image in captions.images)
    used = [image for image in captions.images if plain or image.split in (*data.train_splits, *data.heldout_splits)]
    cache = _cache(config) / "content-hashes.json"
    hashes, failed = content_hashes(captions.folder, [image.uri for image in used], cache)
    contents: dict[str, list[CaptionedImage]] = {}
    for image in used:
        if image.uri in hashes:
            digest = hashes[image.uri]
            contents.setdefault(digest, []).append(dataclasses.replace(image, content_hash=digest))
    given = any(image.split in data.heldout_splits for images in contents.values() for image in images)
    limit = data.holdout * 2**32
    train: list[CaptionedImage] = []
    heldout: list[CaptionedImage] = []
    merged = leaked = 0
    for digest, images in contents.items():
        held = [image for image in images if image.split in data.heldout_splits]
        if given and held:
            heldout.append(_merge(held))
            leaked += len(images) - len(held)
            merged += len(held) - 1
        else:
            side = heldout if not given and int(digest[:8], 16) < limit else train
            side.append(_merge(images))
            merged += len(images) - 1
    if training and not train and not plain and (given or not heldout):
        found = sorted({str(image.split) for image in captions.images})
        raise UsageError(
            f"no image is in a training split: the captions contain {', '.join(found)}, data.train_splits is "
            f"{', '.join(data.train_splits)}"
            + (f"; {leaked} images were dropped because their content is held out too" if leaked else "")
            + (f"; {len(failed)} images cannot be read, such as {min(failed)}" if failed else "")
        )
    unreadable = [(image, failed[image.uri]) for image in used if image.uri in failed]
    return Split(train, heldout, len(captions.images) - len(used), merged, leaked, unreadable)


@dataclass(frozen=True)
class QuerySplit:
    """Captioned images by the use of their captions as queries while an index is built. The sets are disjoint.

    Attributes:
      training: Images whose captions the index is fitted to.
      tuning, verification: Halves of the held-out images, for choosing settings and for measuring them.
    """

    training: list[CaptionedImage]
    tuning: list[CaptionedImage]
    verification: list[CaptionedImage]


def split_queries(split: Split, seed: int) -> QuerySplit:
    """Splits at random, independent of the order of the images; of an odd number, the first half has one more.

    If no image is held out, or all are, half of all images serve as training images and half as held-out images.
    """
    train, held = split.train, split.heldout
    if not train or not held:
        train, held = _halves([*train, *held], seed)
    return QuerySplit(train, *_halves(held, seed))


def random_rank(seed: int, *names: str) -> bytes:
    """Returns a random sort key that depends only on the seed and the names."""
    return hashlib.sha256(json.dumps([seed, *names]).encode()).digest()


def _halves(images: list[CaptionedImage], seed: int) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    shuffled = sorted(images, key=lambda image: random_rank(seed, image.id))
    middle = (len(shuffled) + 1) // 2
    return shuffled[:middle], shuffled[middle:]


@dataclass
class _ImageEntry:
    """Location of an image's first row, and ordered sets of its captions and categories."""

    place: str
    captions: dict[str, None] = field(default_factory=dict)
    categories: dict[str, None] = field(default_factory=dict)


def _cache(config: Config) -> Path:
    return Workspace(config.workspace).cache("captions")


def _rows(config: Config, folder: ImageFolder) -> CaptionRows:
    if _contain_images(config.data):
        yield from read_unpacked(Path(folder.root))
        return
    for file in find_captions_files(config.data.captions, _cache(config)):
        split = _split_of(file.path, config.data)
        for item in file.rows():
            if split and isinstance(item, CaptionRow):
                item = dataclasses.replace(item, split=item.split or split, image=folder.locate(split, item.image))
            yield item


def _split_of(path: Path, data: DataConfig) -> str | None:
    """Returns the split that a file is named after: train2014 for captions_train2014.json and train2014.json."""
    name = path.name.partition(".")[0].removeprefix("captions_")
    return name if name in (*data.train_splits, *data.heldout_splits) else None


def _relative_to_root(row: CaptionRow, folder: ImageFolder) -> CaptionRow | Reject:
    """Makes the image's name relative to the folder and spells it like the file; rejects names outside the folder."""
    name = row.image.removeprefix(f"{folder.root}/") if "://" in row.image else row.image
    if "://" in name:
        return Reject(row.place, "outside", f"{row.image!r} is a URL; download the image and name its file")
    if "/" in name or name in (".", ".."):  # most names are neither; avoids parsing a path
        path = folder.relative(PurePosixPath(name))
        if path.is_absolute() or ".." in path.parts:
            return Reject(row.place, "outside", f"{row.image!r} leaves the image folder {folder.root}")
        name = str(path)
    name = folder.spell(name)
    return dataclasses.replace(row, image=name) if name != row.image else row


def _merge(images: Sequence[CaptionedImage]) -> CaptionedImage:
    texts = dict.fromkeys(text for image in images for text in image.captions)
    categories = dict.fromkeys(category for image in images for category in image.categories)
    return dataclasses.replace(images[0], captions=tuple(texts), categories=tuple(categories))


def _report_rejects(rejects: list[Reject], rows: int, images: int, config: Config) -> dict[str, int]:
    """Logs and lists rejects; returns the number of captions lost by reason."""
    listing = _cache(config) / "rejects.jsonl"
    _write_lines(listing, (json.dumps(dataclasses.asdict(reject)) for reject in rejects))
    lost = sum(reject.captions for reject in rejects)
    kinds = Counter(reject.reason for reject in rejects)
    lines = []
    for reason, count in kinds.most_common():
        examples = [reject for reject in rejects if reject.reason == reason][:_EXAMPLES]
        shown = "; ".join(f"{reject.place}: {reject.detail}" for reject in examples)
        lines.append(f"  {count} {reason.replace('_', ' ')}, such as {shown}")
    summary = "\n".join(lines)
    names = ", ".join(config.data.captions)
    if not images:
        raise UsageError("\n".join([f"captions {names} match no image; {rows} captions were read", *lines]))
    if lost > config.data.max_reject_fraction * rows:
        raise UsageError(
            f"captions {names}: {lost} of {rows} captions are unusable, more than data.max_reject_fraction "
            f"({config.data.max_reject_fraction:g}):\n{summary}\nFix them (all are in {listing}), check --images, "
            "or raise data.max_reject_fraction"
        )
    if lines:
        logger.info(f"captions: {lost} of {rows} are unusable; all faults are listed in {listing}:\n{summary}")
    by_reason: Counter[str] = Counter()
    for reject in rejects:
        by_reason[reject.reason] += reject.captions
    return {reason: count for reason, count in sorted(by_reason.items()) if count}


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    try:
        if path.is_file() and path.read_bytes() == content:
            return  # keeps the file unmodified when nothing changed
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror}; free some space in the workspace") from error
