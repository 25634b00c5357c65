"""Storage in a local folder: atomic, durable writes, and replacements under a file lock."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from searchforge.errors import ConflictError
from searchforge.hashing import sha256_bytes
from searchforge.storage.base import FolderSnapshot, ObjectInfo, Storage, check_path
from searchforge.storage.files import LOCK_SECONDS, atomic_write, converted_errors, locked, make_folder

_COPY_BYTES = 1 << 20


class LocalStorage(Storage):
    """A local folder.

    Args:
      root: Path of the folder.
      lock_seconds: Seconds that a replacement waits for another one.
    """

    def __init__(self, root: str, lock_seconds: float = LOCK_SECONDS) -> None:
        self.root = str(Path(root).expanduser().resolve())
        self._lock_seconds = lock_seconds

    def path(self, path: str) -> Path:
        """Returns the local path of an object."""
        return Path(self.root) / check_path(path)

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        with converted_errors(self.path(path)), self.path(path).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if size is None else size)

    def write(self, path: str, data: bytes) -> None:
        with self._replacing(path) as file:
            file.write(data)

    def exists(self, path: str) -> bool:
        with converted_errors(self.path(path)):
            return self.path(path).is_file()

    def list_folders(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())

    def list_files(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_file())

    @contextlib.contextmanager
    def snapshot(self, folder: str) -> Iterator[FolderSnapshot]:
        path = self.path(folder)
        snapshot = LocalSnapshot(path)
        try:
            yield snapshot
        finally:
            snapshot.close()

    def delete(self, path: str, version: str | None = None) -> None:
        target = self.path(path)
        with converted_errors(target):
            if version is None:
                target.unlink(missing_ok=True)
            elif target.exists():
                with locked(target, self._lock_seconds) as lock:
                    if self.read_version(path)[1] == version:
                        target.unlink(missing_ok=True)
                        lock.unlink()

    def upload(self, local: Path, path: str) -> None:
        with self._replacing(path) as target, local.open("rb") as source:
            shutil.copyfileobj(source, target, _COPY_BYTES)

    def download_folder(self, folder: str, local: Path) -> None:
        with converted_errors(self.path(folder)):
            shutil.copytree(self.path(folder), local, dirs_exist_ok=True)

    def read_version(self, path: str) -> tuple[bytes | None, str]:
        try:
            data = self.read(path)
        except FileNotFoundError:
            return None, ""
        return data, sha256_bytes(data)

    def replace(self, path: str, data: bytes, version: str) -> None:
        target = self.path(path)
        make_folder(target.parent)
        with locked(target, self._lock_seconds):
            if self.read_version(path)[1] != version:
                raise ConflictError(f"{target} was replaced by another writer; read it again and retry")
            self.write(path, data)

    def modified(self, path: str) -> datetime:
        with converted_errors(self.path(path)):
            return _time(self.path(path).stat())

    def now(self) -> datetime:
        make_folder(Path(self.root))
        with converted_errors(Path(self.root)), tempfile.TemporaryFile(dir=self.root) as file:
            return _time(os.fstat(file.fileno()))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        path = self.path(folder)
        with converted_errors(path):
            try:
                with os.scandir(path) as entries:
                    return list(entries)
            except (FileNotFoundError, NotADirectoryError):
                return []

    @contextlib.contextmanager
    def _replacing(self, path: str) -> Iterator[BinaryIO]:
        target = self.path(path)
        make_folder(target.parent)
        with converted_errors(target), atomic_write(target, durable=True) as file:
            yield file


class LocalSnapshot(FolderSnapshot):
    """A folder held open by its descriptor, so that a folder that takes over its name is not affected."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.objects = {}
        self._descriptor: int | None = None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), converted_errors(path):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            self.objects = dict(_objects(self._descriptor))

    def delete(self, first: str = "") -> None:
        if self._descriptor is None:
            return
        with converted_errors(self._path):
            if first:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(first, dir_fd=self._descriptor)
            for name in sorted(self.objects):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._descriptor)
            _remove_empty_folders(self._descriptor)
            # A folder that another writer created under this name is not empty and is kept.
            with contextlib.suppress(OSError):
                self._path.rmdir()

    def close(self) -> None:
        """Closes the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _objects(folder: int, prefix: str = "") -> Iterator[tuple[str, ObjectInfo]]:
    """Yields the files below an open folder, except those that are deleted meanwhile."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            with contextlib.suppress(FileNotFoundError):  # it was deleted after it was listed
                if entry.is_dir(follow_symlinks=False):
                    with _subfolder(folder, entry.name) as inner:
                        yield from _objects(inner, f"{prefix}{entry.name}/")
                else:
                    status = entry.stat(follow_symlinks=False)
                    yield f"{prefix}{entry.name}", ObjectInfo(status.st_size, _time(status))


def _remove_empty_folders(folder: int) -> None:
    """Removes the empty folders below an open folder."""
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # it was deleted after it was listed
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                with _subfolder(folder, name) as inner:
                    _remove_empty_folders(inner)
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=folder)


@contextlib.contextmanager
def _subfolder(folder: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _time(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, timezone.utc)
