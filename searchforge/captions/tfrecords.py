"""Captioned images in TFRecords, unpacked once: the images into files named by their content, the captions into JSON
Lines.

A record is a tf.train.Example with an encoded image (feature `image` or `image/encoded`), one or more captions
(`caption`, `captions`, `captions/text` or `image/caption`) and perhaps a `split`. Files may be gzipped.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from searchforge.artifacts.records import example_bytes, iterate_tfrecords
from searchforge.captions.formats import Found, read_json_lines
from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id, sha256_bytes

logger = logging.getLogger(__name__)

IMAGE_KEYS = ("image", "image/encoded")
CAPTION_KEYS = ("caption", "captions", "captions/text", "image/caption")
SPLIT_KEYS = ("split",)

_NAME = re.compile(r"\.tfrec(ords?)?(\.gz)?(-[-\dof*]+|\*)?$", re.IGNORECASE)
_CAPTIONS, _IMAGES = "captions.jsonl", "images"
_EXTENSIONS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"))


def is_tfrecord(path: Path) -> bool:
    """Whether a name, or a pattern of names, is that of TFRecords: *.tfrecord, *.tfrecords, *.tfrec, also in shards."""
    return _NAME.search(path.name) is not None


def unpack(files: Sequence[Path], cache: Path) -> Path:
    """Unpacks TFRecords below `cache` and returns the images' folder. What is unpacked already is found.

    Raises:
      UsageError: a file cannot be read or is damaged.
      JobError: the images cannot be written.
    """
    folder = cache / content_id([_version(path) for path in files])
    images = folder / _IMAGES
    if (folder / _CAPTIONS).exists():
        return images
    logger.info(f"captions: unpacking {len(files)} TFRecord files into {images}")
    partial = folder / f".{_CAPTIONS}.{os.getpid()}"
    try:
        images.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as lines:
            for path in files:
                for index, payload in enumerate(_records(path)):
                    lines.write(json.dumps({"place": f"{path}: record {index}", **_line(payload, images)}) + "\n")
        partial.replace(folder / _CAPTIONS)  # the commit: a killed run unpacks again, and keeps the images it finds
    except OSError as error:
        raise JobError(f"TFRecords cannot be unpacked into {images}: {error.strerror}; make room there") from None
    finally:
        partial.unlink(missing_ok=True)
    return images


def read_unpacked(images: Path) -> Found:
    """Yields the rows of what `unpack` returned."""
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
        raise UsageError(f"captions {path} are damaged: {error}; copy or make the file again") from None
    except OSError as error:
        raise UsageError(f"captions {path} cannot be read: {error.strerror}") from None


def _line(payload: bytes, images: Path) -> dict[str, Any]:
    """Writes the image of a record and returns what stands for the record in the JSON Lines."""
    try:
        features = example_bytes(payload)
    except ValueError as error:
        return {"problem": str(error)}
    image, captions, split = (
        next((features[key] for key in keys if key in features), []) for keys in (IMAGE_KEYS, CAPTION_KEYS, SPLIT_KEYS)
    )
    if not image or not captions:
        return {
            "problem": f"the record holds {', '.join(sorted(features)) or 'no bytes'}; expected one of "
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
        partial = images / f".{path.name}.{os.getpid()}"
        partial.write_bytes(data)
        partial.replace(path)
    return path.name
