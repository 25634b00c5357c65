"""Content hashes of many images, cached between runs by their version, so that unchanged images are read once."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from searchforge.captions.image_folder import ImageFolder, Version
from searchforge.progress import track
from searchforge.storage.files import atomic_write, converted_errors

_TRACKED = 10_000
"""Number of files from which progress is shown."""

_BATCH = 500

MIN_AGE_SECONDS = 2.0
"""A file that changed more recently could change again within one tick of its file system's clock, unnoticed."""

_Entry = tuple[int, int, int, str]


def content_hashes(
    folder: ImageFolder, uris: Iterable[str], cache: Path, min_age_seconds: float = MIN_AGE_SECONDS
) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes images in parallel. A run that is killed loses the hashes of the last few hundred images at most.

    Args:
      folder: Folder of the images.
      uris: Paths or URIs of images in the folder.
      cache: File of cached hashes; created if it is missing or damaged.
      min_age_seconds: Time since its last change after which the hash of an image is cached.

    Returns:
      SHA-256 by URI, and the reason by URI for images that are unreadable or empty.
    """
    known, hashes, failed = _load(cache), {}, {}
    changed: list[tuple[str, Version]] = []
    for uri in dict.fromkeys(uris):
        try:
            version = folder.version(uri)
        except OSError as error:
            failed[uri] = error.strerror or str(error)
            continue
        entry = known.get(_key(uri))
        if not version[0]:
            failed[uri] = "0 bytes"
        elif entry and entry[:3] == version:
            hashes[uri] = entry[3]
        else:
            changed.append((uri, version))
    if not changed:
        return hashes, failed
    now = time.time_ns()
    with converted_errors(cache), ThreadPoolExecutor(folder.readers) as pool, _progress(len(changed)) as advance:
        for i in range(0, len(changed), _BATCH):
            batch, fresh = changed[i : i + _BATCH], {}
            found = pool.map(functools.partial(_sha256, folder), (uri for uri, _ in batch))
            for (uri, version), result in zip(batch, found, strict=True):
                if isinstance(result, OSError):
                    failed[uri] = result.strerror or str(result)
                    continue
                hashes[uri] = result
                if now - max(version[1:]) >= min_age_seconds * 1e9:
                    fresh[_key(uri)] = (*version, result)
            _append(cache, fresh)
            known |= fresh
            advance(len(batch))
        with atomic_write(cache) as file:
            file.write(json.dumps(known).encode())
    return hashes, failed


def _key(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(uri)  # noqa: PTH100  constructing a Path doubles the cost


def _sha256(folder: ImageFolder, uri: str) -> str | OSError:
    try:
        return folder.sha256(uri)
    except OSError as error:
        return error


def _progress(count: int) -> AbstractContextManager[Callable[[int], None]]:
    return track("hashing images", count) if count >= _TRACKED else contextlib.nullcontext(lambda _: None)


def _load(cache: Path) -> dict[str, _Entry]:
    """Returns the entries of all lines; a line that was not written whole is left out."""
    known: dict[str, _Entry] = {}
    try:
        lines = cache.read_bytes().splitlines()
    except OSError:
        return known
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            entries = json.loads(line).items()
            known |= {
                uri: (int(size), int(first), int(second), str(sha)) for uri, (size, first, second, sha) in entries
            }
    return known


def _append(cache: Path, entries: dict[str, _Entry]) -> None:
    """Appends a line of entries; the line break before it ends a line that was not written whole."""
    with cache.open("ab") as file:
        file.write(b"\n" + json.dumps(entries).encode() + b"\n")
