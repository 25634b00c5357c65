"""A folder of cached files with a size limit, which processes may share."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from searchforge.storage.files import atomic_write, is_temporary

_SCANS = 32
"""The folder is measured again after writing this fraction of its limit, since other processes write to it too."""


class BoundedCache:
    """Files by name. It can be pickled.

    When the cache is full, files that were neither written nor read since this object was made are deleted, the oldest
    first. If there are none, further files are not stored: whoever reads more files in turn than fit would otherwise
    replace each file before reading it again.

    Args:
      folder: Folder of the files; created when the first one is written.
      max_bytes: Size limit of all files. Processes that write at the same time may exceed it by a few percent.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._start = time.time()
        self._lock = threading.Lock()
        self._used = 0
        self._unmeasured: float = max_bytes

    def __reduce__(self) -> tuple[type[BoundedCache], tuple[Path, int]]:
        return BoundedCache, (self.folder, self.max_bytes)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None if it is not cached."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def write(self, name: str, data: bytes) -> bool:
        """Stores a file if there is room; returns whether it is stored.

        Raises:
          OSError: The file cannot be written.
        """
        path = self.folder / name
        with self._lock:
            if path.exists():
                return True
            if not self._make_room(len(data)):
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(data)
            self._used += len(data)
            self._unmeasured += len(data)
            return True

    def _make_room(self, wanted: int) -> bool:
        if self._unmeasured > self.max_bytes / _SCANS:
            self._used, self._unmeasured = sum(size for _, size, _ in self._files()), 0
        if self._used + wanted <= self.max_bytes:
            return True
        for modified, size, path in sorted(self._files()):
            if modified >= self._start or self._used + wanted <= self.max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):  # another process deleted it
                path.unlink()
            self._used -= size
        return self._used + wanted <= self.max_bytes

    def _files(self) -> list[tuple[float, int, Path]]:
        """Returns time of last use, size and path of every file."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if not is_temporary(entry.name):
                        found.append((status.st_mtime, status.st_size, Path(entry.path)))
        return found
