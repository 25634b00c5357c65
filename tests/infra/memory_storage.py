"""An in-memory storage for tests with the contract of LocalStorage, cheap copies and a clock that can be advanced."""

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


class _Contents:
    """The objects and the clock that all clients of a storage share."""

    def __init__(self, objects: dict[str, _Stored], ahead: timedelta) -> None:
        self.objects, self.ahead, self.lock = objects, ahead, threading.RLock()


class MemoryStorage(Storage):
    """A thread-safe in-memory storage.

    Args:
      root: Name of the storage in messages.
    """

    def __init__(self, root: str = "memory") -> None:
        self.root = root
        self._contents = _Contents({}, timedelta())

    def another_client(self) -> MemoryStorage:
        """Returns another client of the same objects, as if another process had opened the storage."""
        return self._with(self._contents)

    def fork(self) -> MemoryStorage:
        """Returns an independent copy."""
        with self._contents.lock:
            return self._with(_Contents(dict(self._contents.objects), self._contents.ahead))

    def advance(self, span: timedelta) -> None:
        """Advances the storage's clock, which ages the existing objects."""
        self._contents.ahead += span

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        return self._stored(path).data[offset : None if size is None else offset + size]

    def write(self, path: str, data: bytes) -> None:
        with self._contents.lock:
            self._contents.objects[check_path(path)] = _Stored(data, self.now())

    def exists(self, path: str) -> bool:
        return check_path(path) in self._contents.objects

    def list_folders(self, folder: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._below(folder) if "/" in name})

    def list_files(self, folder: str) -> list[str]:
        return sorted(name for name in self._below(folder) if "/" not in name)

    def snapshot(self, folder: str) -> AbstractContextManager[FolderSnapshot]:
        return contextlib.nullcontext(MemorySnapshot(self._contents, check_path(folder), self._below(folder)))

    def delete(self, path: str, version: str | None = None) -> None:
        with self._contents.lock:
            if version is None or self.read_version(path)[1] == version:
                self._contents.objects.pop(check_path(path), None)

    def upload(self, local: Path, path: str) -> None:
        self.write(path, local.read_bytes())

    def download_folder(self, folder: str, local: Path) -> None:
        for name, stored in self._below(folder).items():
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_bytes(stored.data)

    def read_version(self, path: str) -> tuple[bytes | None, str]:
        stored = self._contents.objects.get(check_path(path))
        return (stored.data, sha256_bytes(stored.data)) if stored else (None, "")

    def replace(self, path: str, data: bytes, version: str) -> None:
        with self._contents.lock:
            if self.read_version(path)[1] != version:
                raise ConflictError(f"{self.root}/{path} was replaced by another writer; read it again and retry")
            self.write(path, data)

    def modified(self, path: str) -> datetime:
        return self._stored(path).modified

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self._contents.ahead

    def _with(self, contents: _Contents) -> MemoryStorage:
        other = MemoryStorage(self.root)
        other._contents = contents
        return other

    def _stored(self, path: str) -> _Stored:
        try:
            return self._contents.objects[check_path(path)]
        except KeyError:
            raise FileNotFoundError(f"{self.root}/{path}") from None

    def _below(self, folder: str) -> dict[str, _Stored]:
        """Returns the objects below a folder by relative path."""
        prefix = f"{check_path(folder)}/"
        with self._contents.lock:
            objects = self._contents.objects.items()
            return {path.removeprefix(prefix): stored for path, stored in objects if path.startswith(prefix)}


class MemorySnapshot(FolderSnapshot):
    """A snapshot of the objects of a folder."""

    def __init__(self, contents: _Contents, folder: str, seen: dict[str, _Stored]) -> None:
        self._contents, self._folder, self._seen = contents, folder, seen
        self.objects = {name: ObjectInfo(len(stored.data), stored.modified) for name, stored in seen.items()}

    def delete(self, first: str = "") -> None:
        with self._contents.lock:
            for name in self.objects:
                path = f"{self._folder}/{name}"
                if self._contents.objects.get(path) is self._seen[name]:
                    del self._contents.objects[path]
