"""Reads captioned images from disk, or from a bucket through a local cache."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from google.api_core.exceptions import NotFound

from searchforge.hashing import sha256_bytes
from searchforge.storage import buckets
from searchforge.storage.base import GCS_SCHEME
from searchforge.storage.bounded_cache import BoundedCache
from searchforge.storage.gcs_client import reason

logger = logging.getLogger(__name__)


class ImageReader:
    """Reads images by path or by gs:// URI. It can be pickled.

    Args:
      cache: Cache of the images that are read from buckets, by their SHA-256; None to read them each time.
    """

    def __init__(self, cache: BoundedCache | None = None) -> None:
        self._cache = cache
        self._writes = cache is not None

    def read(self, uri: str, sha256: str = "") -> bytes:
        """Returns the bytes of an image.

        Args:
          uri: Path, or URI of the form gs://bucket/name.
          sha256: Hash of the image if it is known, by which the cache finds it.

        Raises:
          OSError: The image cannot be read; `strerror` says why.
        """
        if not uri.startswith(GCS_SCHEME):
            return Path(uri).read_bytes()
        if self._cache and sha256 and (cached := self._cache.read(sha256)) is not None:
            return cached
        try:
            data = buckets.read_object(uri)
        except NotFound:
            raise FileNotFoundError(errno.ENOENT, "No such object", uri) from None
        except (*buckets.ERRORS, ValueError) as error:
            raise OSError(errno.EIO, reason(error), uri) from error
        self._keep(data)
        return data

    def _keep(self, data: bytes) -> None:
        if not self._cache or not self._writes:
            return
        try:
            self._writes = self._cache.write(sha256_bytes(data), data)
            trouble = "" if self._writes else f"it has reached data.max_cache_bytes ({self._cache.max_bytes:,})"
        except OSError as error:
            self._writes, trouble = False, error.strerror or str(error)
        if not self._writes:
            logger.info(f"  no more images are cached in {self._cache.folder} ({trouble}); they are read each time")


def can_read(uri: str) -> bool:
    """Returns whether this process can read an image, by its path or gs:// URI."""
    if not uri.startswith(GCS_SCHEME):
        return os.access(uri, os.R_OK)
    try:
        return buckets.find_object(uri) is not None
    except (*buckets.ERRORS, ValueError):
        return False
