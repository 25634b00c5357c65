"""Reads an item's bytes from a local file, an object in a bucket, or a byte range of an archive."""

from __future__ import annotations

import functools
from collections.abc import Callable

from searchforge.errors import SearchforgeError
from searchforge.hashing import sha256_bytes
from searchforge.storage.base import Storage
from searchforge.storage.factory import open_storage


def read_source(uri: str, byte_range: str, open_folder: Callable[[str], Storage]) -> bytes | None:
    """Returns an item's bytes, or None if they cannot be read.

    Args:
      uri, byte_range: Source of the item, as in EmbeddingRecord.
      open_folder: Opens `/` or a bucket's URL; `functools.cache(open_storage)` opens each bucket once.
    """
    extent, _, file = byte_range.partition("@")
    offset, _, size = extent.partition("+")
    if "://" in (file := file or uri):
        scheme, _, rest = file.partition("://")
        bucket, _, name = rest.partition("/")
        folder = f"{scheme}://{bucket}"
    else:
        folder, name = "/", file.lstrip("/")
    try:
        return open_folder(folder).read(name, int(offset or 0), int(size) if size else None)
    except (OSError, SearchforgeError):
        return None


class SourceReader:
    """Reads items whose content has not changed since they were embedded."""

    def __init__(self) -> None:
        self._open = functools.cache(open_storage)

    def read(self, uri: str, byte_range: str, content_hash: str) -> bytes | None:
        """Returns an item's bytes, or None if they cannot be read or have another hash."""
        data = read_source(uri, byte_range, self._open)
        return data if data is not None and sha256_bytes(data) == content_hash else None
