"""Content hashes of many images, cached between runs by their version, so that unchanged images are read once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from searchforge.captions.image_folder import ImageFolder, Version
from searchforge.progress import track
from searchforge.storage.files import atomic_write

_TRACKED = 10_000
"""Number of files from which progress is shown."""

_BATCH = 500

MIN_AGE_SECONDS = 2.0
"""A file that changed more recently could change again within one tick of its file system's clock, unnoticed."""

_Entry = tuple[int, int, int, str]


def content_hashes(
    folder: ImageFolder, uris: Iterable[str], cache: Path, min_age_seconds: float = MIN_AGE_SECONDS
) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes images in parallel.

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
    if changed:
        now = time.time_ns()
        found = _hash(folder, [uri for uri, _ in changed])
        for (uri, version), result in zip(changed, found, strict=True):
            if isinstance(result, OSError):
                failed[uri] = result.strerror or str(result)
                continue
            hashes[uri] = result
            if now - max(version[1:]) >= min_age_seconds * 1e9:
                known[_key(uri)] = (*version, result)
        _save(cache, known)
    return hashes, failed


def _key(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(uri)  # noqa: PTH100  constructing a Path doubles the cost


def _hash(folder: ImageFolder, uris: list[str]) -> list[str | OSError]:
    def one(uri: str) -> str | OSError:
        try:
            return folder.sha256(uri)
        except OSError as error:
            return error

    found: list[str | OSError] = []
    with ThreadPoolExecutor(folder.readers) as pool:
        if len(uris) < _TRACKED:
            return list(pool.map(one, uris))
        with track("hashing images", len(uris)) as advance:
            for i in range(0, len(uris), _BATCH):
                batch = uris[i : i + _BATCH]
                found += pool.map(one, batch)
                advance(len(batch))
    return found


def _load(cache: Path) -> dict[str, _Entry]:
    try:
        content = json.loads(cache.read_bytes())
        return {path: (int(size), int(m), int(c), str(sha)) for path, (size, m, c, sha) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(cache: Path, known: dict[str, _Entry]) -> None:
    with atomic_write(cache) as file:
        file.write(json.dumps(known).encode())
