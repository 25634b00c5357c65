"""A storage in memory for tests that keeps LocalStorage's contract: cheap to copy, and with a clock that can be set."""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from searchforge.errors import ConflictError
from searchforge.hashing import sha256_bytes
from searchforge.storage.base import FolderSnapshot, ObjectInfo, Storage, check_path


class _Stored(NamedTuple):
    data: bytes
    modified: datetime


class _Shelf:
    """What all clients of one storage share."""

    def __init__(self, objects: dict[str, _Stored], ahead: timedelta) -> None:
        self.objects, self.ahead, self.lock = objects, ahead, threading.RLock()


class MemoryStorage(Storage):
    """A thread-safe storage in memory.

    Args:
      root: what messages call it.
    """

    def __init__(self, root: str = "memory") -> None:
        self.root = root
        self._shelf = _Shelf({}, timedelta())

    def another_client(self) -> MemoryStorage:
        """Returns a storage with the very same objects, as another process would open it."""
        return self._with(self._shelf)

    def fork(self) -> MemoryStorage:
        """Returns a copy: what is written to one of them does not show in the other."""
        with self._shelf.lock:
            return self._with(_Shelf(dict(self._shelf.objects), self._shelf.ahead))

    def advance(self, span: timedelta) -> None:
        """Sets the storage's clock forward, so that what is there becomes older."""
        self._shelf.ahead += span

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        return self._stored(path).data[offset : None if size is None else offset + size]

    def write(self, path: str, data: bytes) -> None:
        with self._shelf.lock:
            self._shelf.objects[check_path(path)] = _Stored(data, self.now())

    def exists(self, path: str) -> bool:
        return check_path(path) in self._shelf.objects

    def list_folders(self, folder: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._below(folder) if "/" in name})

    def list_files(self, folder: str) -> list[str]:
        return sorted(name for name in self._below(folder) if "/" not in name)

    def snapshot(self, folder: str) -> AbstractContextManager[FolderSnapshot]:
        return contextlib.nullcontext(MemorySnapshot(self._shelf, check_path(folder), self._below(folder)))

    def delete(self, path: str, version: str | None = None) -> None:
        with self._shelf.lock:
            if version is None or self.read_version(path)[1] == version:
                self._shelf.objects.pop(check_path(path), None)

    def upload(self, local: Path, path: str) -> None:
        self.write(path, local.read_bytes())

    def download_folder(self, folder: str, local: Path) -> None:
        for name, stored in self._below(folder).items():
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_bytes(stored.data)

    def read_version(self, path: str) -> tuple[bytes | None, str]:
        stored = self._shelf.objects.get(check_path(path))
        return (stored.data, sha256_bytes(stored.data)) if stored else (None, "")

    def replace(self, path: str, data: bytes, version: str) -> None:
        with self._shelf.lock:
            if self.read_version(path)[1] != version:
                raise ConflictError(f"{self.root}/{path} was replaced by another writer; read it again and retry")
            self.write(path, data)

    def modified(self, path: str) -> datetime:
        return self._stored(path).modified

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self._shelf.ahead

    def _with(self, shelf: _Shelf) -> MemoryStorage:
        other = MemoryStorage(self.root)
        other._shelf = shelf
        return other

    def _stored(self, path: str) -> _Stored:
        try:
            return self._shelf.objects[check_path(path)]
        except KeyError:
            raise FileNotFoundError(f"{self.root}/{path}") from None

    def _below(self, folder: str) -> dict[str, _Stored]:
        """Objects below a folder, by their path in it."""
        prefix = f"{check_path(folder)}/"
        with self._shelf.lock:
            objects = self._shelf.objects.items()
            return {path.removeprefix(prefix): stored for path, stored in objects if path.startswith(prefix)}


class MemorySnapshot(FolderSnapshot):
    """The objects of a folder as they were when they were listed."""

    def __init__(self, shelf: _Shelf, folder: str, seen: dict[str, _Stored]) -> None:
        self._shelf, self._folder, self._seen = shelf, folder, seen
        self.objects = {name: ObjectInfo(len(stored.data), stored.modified) for name, stored in seen.items()}

    def delete(self, first: str = "") -> None:
        with self._shelf.lock:
            for name in self.objects:
                path = f"{self._folder}/{name}"
                if self._shelf.objects.get(path) is self._seen[name]:
                    del self._shelf.objects[path]
