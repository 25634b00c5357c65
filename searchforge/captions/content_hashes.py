"""Content hashes of many files, cached between runs by size and timestamps, so that unchanged files are read once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from searchforge.hashing import sha256_file
from searchforge.progress import track
from searchforge.storage.files import atomic_write

_TRACKED = 10_000
"""Number of files from which progress is shown."""

_BATCH = 500

MIN_AGE_SECONDS = 2.0
"""A file that changed more recently could change again within one tick of its file system's clock, unnoticed."""

_Entry = tuple[int, int, int, str]


def content_hashes(
    paths: Iterable[Path], cache: Path, min_age_seconds: float = MIN_AGE_SECONDS
) -> tuple[dict[Path, str], dict[Path, str]]:
    """Hashes files in parallel.

    Args:
      cache: File of cached hashes; created if it is missing or damaged.
      min_age_seconds: Time since its last change after which the hash of a file is cached.

    Returns:
      SHA-256 by path, and the reason by path for files that are unreadable or empty.
    """
    known, hashes, failed = _load(cache), {}, {}
    changed: list[tuple[Path, tuple[int, int, int]]] = []
    for path in dict.fromkeys(paths):
        try:
            status = path.stat()
        except OSError as error:
            failed[path] = error.strerror or str(error)
            continue
        version = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        entry = known.get(str(path.absolute()))
        if not status.st_size:
            failed[path] = "0 bytes"
        elif entry and entry[:3] == version:
            hashes[path] = entry[3]
        else:
            changed.append((path, version))
    if changed:
        now = time.time_ns()
        found = _hash([path for path, _ in changed])
        for (path, version), result in zip(changed, found, strict=True):
            if isinstance(result, OSError):
                failed[path] = result.strerror or str(result)
                continue
            hashes[path] = result
            if now - max(version[1:]) >= min_age_seconds * 1e9:
                known[str(path.absolute())] = (*version, result)
        _save(cache, known)
    return hashes, failed


def _hash(paths: list[Path]) -> list[str | OSError]:
    def one(path: Path) -> str | OSError:
        try:
            return sha256_file(path)
        except OSError as error:
            return error

    found: list[str | OSError] = []
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        if len(paths) < _TRACKED:
            return list(pool.map(one, paths))
        with track("hashing images", len(paths)) as advance:
            for i in range(0, len(paths), _BATCH):
                batch = paths[i : i + _BATCH]
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
