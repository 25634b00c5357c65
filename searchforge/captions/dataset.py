"""Captioned images: read from captions files, checked against the image folder, and split without leaks."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from searchforge.artifacts.workspace import Workspace
from searchforge.captions.content_hashes import content_hashes
from searchforge.captions.formats import READERS, Found, Reject, Row, reader_of
from searchforge.captions.tfrecords import is_tfrecord, read_unpacked, unpack
from searchforge.config import Config, DataConfig
from searchforge.errors import JobError, UsageError

logger = logging.getLogger(__name__)

MAX_CAPTION = 4000
"""Characters; the rest of a longer caption is cut off. No text tower reads so many."""

_EXAMPLES = 3


@dataclass(frozen=True)
class CaptionedImage:
    """One image with its captions.

    Attributes:
      id: path below the image folder.
      path: the local image file.
      split: as given, or None.
      captions: at least one non-empty string; no two are equal.
      categories: where the captions files have them.
      content_hash: SHA-256 of the file, once `split_heldout` has read it.
    """

    id: str
    path: Path
    split: str | None
    captions: tuple[str, ...]
    categories: tuple[str, ...] = ()
    content_hash: str = ""


@dataclass(frozen=True)
class Captions:
    """What captions files hold. Every caption is used, repeated or rejected: the counts add up to `rows`.

    Attributes:
      images: in the order of their ids; one that is given with several splits is there with each.
      rows: captions in the files.
      repeated: captions that their image has already.
      rejected: captions that cannot be used, by reason.
      cut: captions that were longer than MAX_CAPTION.
    """

    images: list[CaptionedImage]
    rows: int
    repeated: int
    rejected: dict[str, int]
    cut: int


@dataclass(frozen=True)
class Split:
    """Images to train on and images to measure with; no content is on both sides, or twice on one.

    Attributes:
      train, heldout: with their content hashes.
      unused: images of other splits.
      merged: images that are the same file content as another of their side, to which their captions went.
      leaked: training images that were dropped because their content is held out.
      unreadable: (image, what is wrong with its file).
    """

    train: list[CaptionedImage]
    heldout: list[CaptionedImage]
    unused: int
    merged: int
    leaked: int
    unreadable: list[tuple[CaptionedImage, str]]


def has_captions(data: DataConfig) -> bool:
    """Whether captioned images are configured."""
    return bool(data.captions and (data.images or all(is_tfrecord(Path(name)) for name in data.captions)))


def image_folder(config: Config) -> Path:
    """Returns the folder of the captioned images: `data.images`, or what TFRecords are unpacked to.

    Raises:
      UsageError: neither is configured, or the folder does not exist.
    """
    data = config.data
    if data.images and not Path(data.images).is_dir():
        raise UsageError(
            f"image folder {data.images} does not exist; set data.images (--images) to the captions' folder"
        )
    if not has_captions(data):
        raise UsageError(
            "captioned images are needed; set data.captions (--captions: COCO-captions JSON, CSV, TSV, JSON Lines or "
            "TFRecords) and, but for TFRecords, data.images (--images)"
        )
    files = _files(data)
    return unpack(files, _cache(config)) if is_tfrecord(files[0]) else Path(str(data.images))


def corpus_source(config: Config) -> str:
    """Returns the corpus to search: `corpus.source`, or the folder of the captioned images.

    Raises:
      UsageError: nothing of that is configured.
    """
    source = config.corpus.source or config.data.images
    if source:
        return source
    if has_captions(config.data):
        return str(image_folder(config))
    raise UsageError(
        "no corpus is given; set corpus.source (--corpus) or data.images (--images) to a folder, a glob or a "
        "text file of paths or URIs"
    )


def load_captions(config: Config) -> Captions:
    """Reads the captions files of `config.data`. What cannot be used is counted, and listed in the workspace's cache.

    Raises:
      UsageError: a file is missing or of another format, nothing is captioned, or more than
        `data.max_reject_fraction` of the captions cannot be used.
    """
    root = image_folder(config)
    folders = _Folders(root)
    found: dict[tuple[str, str | None], _Entry] = {}
    rejects: list[Reject] = []
    rows = repeated = cut = 0
    for item in _rows(config.data, root, folders):
        row = _inside(item, root) if isinstance(item, Row) else item
        if isinstance(row, Reject):
            rows += row.captions
            rejects.append(row)
            continue
        rows += 1
        cut += len(row.caption) > MAX_CAPTION
        text = row.caption[:MAX_CAPTION].rstrip()
        entry = found.setdefault((row.image, row.split), _Entry(row.place))
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
        logger.info(f"captions: {cut} longer than {MAX_CAPTION} characters are cut off there")
    return Captions(images, rows, repeated, _report(rejects, rows, len(images), config), cut)


def split_heldout(captions: Captions, config: Config, training: bool = True) -> Split:
    """Splits images into training and held-out ones, by their content.

    Images with the same content become one with the captions of all. Content with a held-out split is held out,
    whatever other splits it has. Where nothing has a held-out split, `data.holdout` of the contents are held out by
    their hash: the choice does not change when images are added or renamed.

    Args:
      training: whether there must be images to train on.

    Raises:
      UsageError: splits exist, but no image is left in one of `data.train_splits`.
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
            f"no image is in a training split: the captions hold {', '.join(found)}, data.train_splits is "
            f"{', '.join(data.train_splits)}"
            + (f"; {leaked} images were dropped because their content is held out too" if leaked else "")
            + (f"; {len(failed)} images cannot be read, such as {min(failed)}" if failed else "")
        )
    unreadable = [(image, failed[image.path]) for image in used if image.path in failed]
    return Split(train, heldout, len(captions.images) - len(used), merged, leaked, unreadable)


@dataclass(frozen=True)
class QuerySplit:
    """Captioned images by what their captions are for when an index is built; no image is in two of the sets.

    Attributes:
      training: what the index is fitted to.
      tuning, verification: halves of the held-out images: the first chooses settings, the second measures them.
    """

    training: list[CaptionedImage]
    tuning: list[CaptionedImage]
    verification: list[CaptionedImage]


def split_queries(split: Split, seed: int) -> QuerySplit:
    """Splits by chance, whatever the order of the images; the first of two halves has the odd one.

    Where no image is held out, or all are, half of the images stand for the training images and half for the held-out
    ones.
    """
    train, held = split.train, split.heldout
    if not train or not held:
        train, held = _halves([*train, *held], seed)
    return QuerySplit(train, *_halves(held, seed))


def random_rank(seed: int, *names: str) -> bytes:
    """Returns a random number that is the same wherever the names stand."""
    return hashlib.sha256(json.dumps([seed, *names]).encode()).digest()


def _halves(images: list[CaptionedImage], seed: int) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    shuffled = sorted(images, key=lambda image: random_rank(seed, image.id))
    middle = (len(shuffled) + 1) // 2
    return shuffled[:middle], shuffled[middle:]


@dataclass
class _Entry:
    """What is known of an image: the place of its first row, and ordered sets of captions and categories."""

    place: str
    captions: dict[str, None] = field(default_factory=dict)
    categories: dict[str, None] = field(default_factory=dict)


def _cache(config: Config) -> Path:
    return Workspace(config.workspace).cache("captions")


def _files(data: DataConfig) -> list[Path]:
    """Returns the captions files; a name that is no file may be a pattern."""
    files: list[Path] = []
    for name in map(Path, data.captions):
        matches = _matches(name) if "*" in name.name and not name.exists() else [name]
        if not matches:
            raise UsageError(f"captions {name} match no file; check the pattern")
        files += matches
    for path in files:
        if not is_tfrecord(path) and not reader_of(path):
            raise UsageError(
                f"captions {path} are of an unknown format; expected a name that ends in {', '.join(READERS)}, "
                ".tfrecord, .tfrecords or .tfrec"
            )
    if len({is_tfrecord(path) for path in files}) > 1:
        raise UsageError(
            f"captions {', '.join(map(str, files[:4]))} mix TFRecords with other formats; "
            "TFRecords bring their images with them, so give either"
        )
    return files


def _matches(pattern: Path) -> list[Path]:
    try:
        names = os.listdir(pattern.parent)  # noqa: PTH208  fnmatch takes names
    except OSError as error:
        raise UsageError(f"captions {pattern}: {pattern.parent} cannot be read: {error.strerror}") from None
    return [pattern.parent / name for name in sorted(fnmatch.filter(names, pattern.name))]


def _rows(data: DataConfig, root: Path, folders: _Folders) -> Found:
    files = _files(data)
    if is_tfrecord(files[0]):
        yield from read_unpacked(root)
        return
    for path in files:
        reader, split = reader_of(path), _split_of(path, data)
        assert reader
        try:
            for item in reader(path):
                if split and isinstance(item, Row):
                    item = dataclasses.replace(item, split=item.split or split, image=folders.place(split, item.image))
                yield item
        except OSError as error:
            raise UsageError(f"captions {path} cannot be read: {error.strerror}") from None


def _split_of(path: Path, data: DataConfig) -> str | None:
    """The split that a file is named after: captions_train2014.json or train2014.json are of train2014."""
    name = path.name.partition(".")[0].removeprefix("captions_")
    return name if name in (*data.train_splits, *data.heldout_splits) else None


def _inside(row: Row, root: Path) -> Row | Reject:
    """Makes the image's name relative to the folder, or rejects one that leaves it."""
    if "/" not in row.image and row.image not in (".", ".."):  # most names; parsing a path takes longer
        return row
    path = PurePosixPath(row.image)
    if path.is_absolute():
        base = PurePosixPath(root.absolute())
        if base in path.parents:
            path = path.relative_to(base)
    if path.is_absolute() or ".." in path.parts:
        return Reject(row.place, "outside", f"{row.image!r} leaves the image folder {root}")
    return dataclasses.replace(row, image=str(path)) if str(path) != row.image else row


class _Folders:
    """The image folder's listings, each read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real_root = root.resolve()
        self._names: dict[PurePosixPath, dict[str, bool] | None] = {}

    def place(self, split: str, name: str) -> str:
        """COCO's file names do not carry their folder, which is named after the split."""
        inner = PurePosixPath(split, name)
        return str(inner) if ".." not in inner.parts and self.fault(inner) is None else name

    def fault(self, name: PurePosixPath) -> tuple[str, str] | None:
        """Returns why a name is not that of a file below the root: reason and detail; None where it is."""
        names = self._list(name.parent)
        if names is None:
            return "outside", f"{str(name)!r} is in a folder that a link leads out of the image folder to"
        if name.name not in names:
            return "missing", repr(str(name))
        if names[name.name] and not (self._root / name).resolve().is_relative_to(self._real_root):
            return "outside", f"{str(name)!r} is a link that leaves the image folder"
        return None

    def _list(self, folder: PurePosixPath) -> dict[str, bool] | None:
        """Returns the files of a folder, and whether each is a link; None where the folder is outside."""
        if folder not in self._names:
            path = self._root / folder
            names: dict[str, bool] | None = {}
            try:
                if not path.resolve().is_relative_to(self._real_root):
                    names = None
                elif path.is_dir():
                    with os.scandir(path) as entries:
                        names = {entry.name: entry.is_symlink() for entry in entries if _is_file(entry)}
            except (OSError, RuntimeError):  # a name that no file system takes, a folder that may not be read
                names = {}
            self._names[folder] = names
        return self._names[folder]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _merge(images: Sequence[CaptionedImage]) -> CaptionedImage:
    texts = dict.fromkeys(text for image in images for text in image.captions)
    categories = dict.fromkeys(category for image in images for category in image.categories)
    return dataclasses.replace(images[0], captions=tuple(texts), categories=tuple(categories))


def _report(rejects: list[Reject], rows: int, images: int, config: Config) -> dict[str, int]:
    """Says and lists what is not used; returns its captions by reason."""
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
        raise UsageError("\n".join([f"captions {names} caption no image; {rows} captions were read", *lines]))
    if lost > config.data.max_reject_fraction * rows:
        raise UsageError(
            f"captions {names}: {lost} of {rows} captions cannot be used, more than data.max_reject_fraction "
            f"({config.data.max_reject_fraction:g}):\n{summary}\nMend them (all are in {listing}), check --images, "
            "or raise data.max_reject_fraction"
        )
    if lines:
        logger.info(f"captions: {lost} of {rows} cannot be used; all faults are listed in {listing}:\n{summary}")
    by_reason: Counter[str] = Counter()
    for reject in rejects:
        by_reason[reject.reason] += reject.captions
    return {reason: count for reason, count in sorted(by_reason.items()) if count}


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_file() and path.read_bytes() == content:
            return  # a run that finds everything done changes nothing
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise JobError(f"{path} cannot be written: {error.strerror}; make room in the workspace") from error
