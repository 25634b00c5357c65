"""Captioned images in TFRecords, unpacked once: images to files named by content hash, captions to JSON Lines.

A record is a tf.train.Example with an encoded image (feature `image` or `image/encoded`), one or more captions
(`caption`, `captions`, `captions/text` or `image/caption`) and optionally a `split`. Files may be gzipped.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from searchforge.artifacts.records import example_bytes, iterate_tfrecords
from searchforge.captions.formats import CaptionRows, read_json_lines
from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id, sha256_bytes
from searchforge.storage.files import atomic_write

logger = logging.getLogger(__name__)

IMAGE_KEYS = ("image", "image/encoded")
CAPTION_KEYS = ("caption", "captions", "captions/text", "image/caption")
SPLIT_KEYS = ("split",)

_NAME = re.compile(r"\.tfrec(ords?)?(\.gz)?(-[-\dof*]+|\*)?$", re.IGNORECASE)
_CAPTIONS, _IMAGES = "captions.jsonl", "images"
_EXTENSIONS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"))


def is_tfrecord(name: str) -> bool:
    """Returns whether a file name or pattern is that of TFRecords: *.tfrecord, *.tfrecords or *.tfrec, also sharded."""
    return _NAME.search(name.rpartition("/")[2]) is not None


def unpack(files: Sequence[Path], cache: Path) -> Path:
    """Unpacks TFRecords below `cache`, unless that was done before, and returns the folder of the images.

    Raises:
      UsageError: A file cannot be read or is damaged.
      JobError: The images cannot be written.
    """
    folder = cache / content_id([_version(path) for path in files])
    images = folder / _IMAGES
    if (folder / _CAPTIONS).exists():
        return images
    logger.info(f"captions: unpacking {len(files)} TFRecord files into {images}")
    try:
        images.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / _CAPTIONS) as lines:  # the commit; until then, a rerun keeps the existing images
            for path in files:
                for index, payload in enumerate(_records(path)):
                    line = {"place": f"{path}: record {index}", **_line(payload, images)}
                    lines.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise JobError(f"TFRecords cannot be unpacked into {images}: {error.strerror}; free some space there") from None
    return images


def read_unpacked(images: Path) -> CaptionRows:
    """Yields the rows of an image folder that `unpack` returned."""
    return read_json_lines(images.parent / _CAPTIONS, place_key="place")


def _version(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"captions {path} cannot be read: {error.strerror}") from None
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]


def _records(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if zipped else file as records:
                yield from iterate_tfrecords(cast(BinaryIO, records))
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"captions {path} are damaged: {error}; copy or create the file again") from None
    except OSError as error:
        raise UsageError(f"captions {path} cannot be read: {error.strerror}") from None


def _line(payload: bytes, images: Path) -> dict[str, Any]:
    """Writes the image of a record and returns the record's JSON line."""
    try:
        features = example_bytes(payload)
    except ValueError as error:
        return {"problem": str(error)}
    image, captions, split = (
        next((features[key] for key in keys if key in features), []) for keys in (IMAGE_KEYS, CAPTION_KEYS, SPLIT_KEYS)
    )
    if not image or not captions:
        return {
            "problem": f"the record contains {', '.join(sorted(features)) or 'no bytes'}; expected one of "
            f"{', '.join(IMAGE_KEYS)} and one of {', '.join(CAPTION_KEYS)}"
        }
    texts = [text.decode("utf-8", "surrogateescape") for text in (*captions, *split[:1])]
    return {
        "image": _write(image[0], images),
        "captions": texts[: len(captions)],
        "split": texts[-1] if split else None,
    }


def _write(data: bytes, images: Path) -> str:
    extension = next((extension for magic, extension in _EXTENSIONS if data.startswith(magic)), "bin")
    path = images / f"{sha256_bytes(data)}.{extension}"
    if not path.exists():
        with atomic_write(path) as file:
            file.write(data)
    return path.name
