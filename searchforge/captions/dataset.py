"""Captioned images: read from captions files, checked against the image folder, and split without leakage."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from searchforge.artifacts.workspace import Workspace
from searchforge.captions.content_hashes import content_hashes
from searchforge.captions.formats import READERS, CaptionRow, CaptionRows, Reject, reader_for
from searchforge.captions.tfrecords import is_tfrecord, read_unpacked, unpack
from searchforge.config import Config, DataConfig
from searchforge.errors import JobError, UsageError
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
      path: Local image file.
      split: Split in the captions file, or None.
      captions: One or more distinct, non-empty strings.
      categories: Categories in the captions file, if any.
      content_hash: SHA-256 of the file, set by `split_heldout`.
    """

    id: str
    path: Path
    split: str | None
    captions: tuple[str, ...]
    categories: tuple[str, ...] = ()
    content_hash: str = ""


@dataclass(frozen=True)
class Captions:
    """Content of captions files. Every caption is used, repeated or rejected: the counts add up to `rows`.

    Attributes:
      images: Images in the order of their ids; an image with several splits occurs once for each.
      rows: Number of captions in the files.
      repeated: Number of captions that repeat another one of the same image.
      rejected: Number of unusable captions by reason.
      cut: Number of captions that were longer than MAX_CAPTION.
    """

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
    return bool(data.captions and (data.images or all(is_tfrecord(Path(name)) for name in data.captions)))


def image_folder(config: Config) -> Path:
    """Returns the folder of the captioned images: `data.images`, or the folder that TFRecords are unpacked to.

    Raises:
      UsageError: Neither is configured, or the folder does not exist.
    """
    data = config.data
    if data.images and not Path(data.images).is_dir():
        raise UsageError(
            f"image folder {data.images} does not exist; set data.images (--images) to the captions' folder"
        )
    if not has_captions(data):
        raise UsageError(
            "captioned images are required; set data.captions (--captions: COCO captions JSON, CSV, TSV, JSON Lines or "
            "TFRecords) and, except for TFRecords, data.images (--images)"
        )
    files = _files(data)
    return unpack(files, _cache(config)) if is_tfrecord(files[0]) else Path(str(data.images))


def corpus_source(config: Config) -> str:
    """Returns the corpus to search: `corpus.source`, or the folder of the captioned images.

    Raises:
      UsageError: Neither is configured.
    """
    source = config.corpus.source or config.data.images
    if source:
        return source
    if has_captions(config.data):
        return str(image_folder(config))
    raise UsageError(
        "no corpus is configured; set corpus.source (--corpus) or data.images (--images) to a folder, a glob or a "
        "text file of paths or URIs"
    )


def load_captions(config: Config) -> Captions:
    """Reads the captions files of `config.data`. Unusable captions are counted, and listed in the workspace's cache.

    Raises:
      UsageError: A file is missing or has an unsupported format, no image has a caption, or more than
        `data.max_reject_fraction` of the captions are unusable.
    """
    root = image_folder(config)
    folders = _Folders(root)
    found: dict[tuple[str, str | None], _ImageEntry] = {}
    rejects: list[Reject] = []
    rows = repeated = cut = 0
    for item in _rows(config.data, root, folders):
        row = _relative_to_root(item, root, folders) if isinstance(item, CaptionRow) else item
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
        if fault := folders.fault(PurePosixPath(name)):
            rejects.append(Reject(entry.place, *fault, captions=len(entry.captions)))
        else:
            images.append(CaptionedImage(name, root / name, split, tuple(entry.captions), tuple(entry.categories)))
    if cut:
        logger.info(f"captions: {cut} longer than {MAX_CAPTION} characters are truncated")
    return Captions(images, rows, repeated, _report_rejects(rejects, rows, len(images), config), cut)


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
    hashes, failed = content_hashes([image.path for image in used], _cache(config) / "content-hashes.json")
    contents: dict[str, list[CaptionedImage]] = {}
    for image in used:
        if image.path in hashes:
            digest = hashes[image.path]
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
    unreadable = [(image, failed[image.path]) for image in used if image.path in failed]
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


def _files(data: DataConfig) -> list[Path]:
    """Returns the captions files, with patterns expanded unless a file has that very name."""
    files: list[Path] = []
    for name in map(Path, data.captions):
        matches = _matches(name) if "*" in name.name and not name.exists() else [name]
        if not matches:
            raise UsageError(f"captions {name} match no file; check the pattern")
        files += matches
    for path in files:
        if not is_tfrecord(path) and not reader_for(path):
            raise UsageError(
                f"captions {path} have an unknown format; expected a name that ends in {', '.join(READERS)}, "
                ".tfrecord, .tfrecords or .tfrec"
            )
    if len({is_tfrecord(path) for path in files}) > 1:
        raise UsageError(
            f"captions {', '.join(map(str, files[:4]))} mix TFRecords with other formats; "
            "TFRecords contain their images, so use one or the other"
        )
    return files


def _matches(pattern: Path) -> list[Path]:
    try:
        names = os.listdir(pattern.parent)  # noqa: PTH208  fnmatch needs names
    except OSError as error:
        raise UsageError(f"captions {pattern}: {pattern.parent} cannot be read: {error.strerror}") from None
    return [pattern.parent / name for name in sorted(fnmatch.filter(names, pattern.name))]


def _rows(data: DataConfig, root: Path, folders: _Folders) -> CaptionRows:
    files = _files(data)
    if is_tfrecord(files[0]):
        yield from read_unpacked(root)
        return
    for path in files:
        reader, split = reader_for(path), _split_of(path, data)
        assert reader
        try:
            for item in reader(path):
                if split and isinstance(item, CaptionRow):
                    item = dataclasses.replace(item, split=item.split or split, image=folders.locate(split, item.image))
                yield item
        except OSError as error:
            raise UsageError(f"captions {path} cannot be read: {error.strerror}") from None


def _split_of(path: Path, data: DataConfig) -> str | None:
    """Returns the split that a file is named after: train2014 for captions_train2014.json and train2014.json."""
    name = path.name.partition(".")[0].removeprefix("captions_")
    return name if name in (*data.train_splits, *data.heldout_splits) else None


def _relative_to_root(row: CaptionRow, root: Path, folders: _Folders) -> CaptionRow | Reject:
    """Makes the image's name relative to the folder and spells it like the file; rejects names outside the folder."""
    if "/" not in row.image and row.image not in (".", ".."):  # most names; avoids parsing a path
        name = row.image
    elif "://" in row.image:
        return Reject(row.place, "outside", f"{row.image!r} is a URL; download the image and name its file")
    else:
        path = PurePosixPath(row.image)
        if path.is_absolute():
            base = PurePosixPath(root.absolute())
            if base in path.parents:
                path = path.relative_to(base)
        if path.is_absolute() or ".." in path.parts:
            return Reject(row.place, "outside", f"{row.image!r} leaves the image folder {root}")
        name = str(path)
    name = folders.spell(name)
    return dataclasses.replace(row, image=name) if name != row.image else row


class _Folders:
    """Directory listings below the image folder, each read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real_root = root.resolve()
        self._names: dict[PurePosixPath, dict[str, bool] | None] = {}
        self._spellings: dict[PurePosixPath, dict[str, str]] = {}

    def locate(self, split: str, name: str) -> str:
        """Adds the folder named after the split, which COCO's file names lack, if the file is there."""
        inner = PurePosixPath(split, name)
        if ".." in inner.parts:
            return name
        inner = PurePosixPath(self.spell(str(inner)))
        return name if self.fault(inner) else str(inner)

    def spell(self, name: str) -> str:
        """Returns a name as its file and folders spell it, which may be in another Unicode normal form."""
        if name.isascii():
            return name
        folder = PurePosixPath()
        for part in PurePosixPath(name).parts:
            if folder not in self._spellings:
                try:
                    found = os.listdir(self._root / folder)  # noqa: PTH208  names are enough
                except OSError:
                    found = []
                normal = {unicodedata.normalize("NFC", entry): entry for entry in found}
                self._spellings[folder] = normal | {entry: entry for entry in found}
            spellings = self._spellings[folder]
            folder /= spellings.get(part) or spellings.get(unicodedata.normalize("NFC", part), part)
        return str(folder)

    def fault(self, name: PurePosixPath) -> tuple[str, str] | None:
        """Returns reason and detail if a name is not that of a file below the root, else None."""
        names = self._list(name.parent)
        if names is None:
            return "outside", f"{str(name)!r} is reached through a link that leaves the image folder"
        if name.name not in names:
            return "missing", repr(str(name))
        if names[name.name] and not (self._root / name).resolve().is_relative_to(self._real_root):
            return "outside", f"{str(name)!r} is a link that leaves the image folder"
        return None

    def _list(self, folder: PurePosixPath) -> dict[str, bool] | None:
        """Returns the files of a folder, each with whether it is a link; None if the folder is outside the root."""
        if folder not in self._names:
            path = self._root / folder
            names: dict[str, bool] | None = {}
            try:
                if not path.resolve().is_relative_to(self._real_root):
                    names = None
                elif path.is_dir():
                    with os.scandir(path) as entries:
                        names = {entry.name: entry.is_symlink() for entry in entries if _is_file(entry)}
            except (OSError, RuntimeError):  # an invalid name or an unreadable folder
                names = {}
            self._names[folder] = names
        return self._names[folder]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that points to itself
        return False


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
