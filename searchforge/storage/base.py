"""The storage interface that a local folder and gs://bucket/prefix share.

Paths are relative to the storage's root and use `/`. Writes are atomic. A mutable object is replaced only if it is
still at the version that was read (GCS: generation precondition; local: content hash under a lock). Transient failures
are retried; permanent ones raise a JobError that names the object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from searchforge.errors import ConflictError, UsageError
from searchforge.storage.files import is_temporary

GCS_SCHEME = "gs://"


class ObjectInfo(NamedTuple):
    """Metadata of a listed object.

    Attributes:
      bytes: Size in bytes.
      modified: Time of the last write, by the storage's clock.
    """

    bytes: int
    modified: datetime


class FolderSnapshot(ABC):
    """Objects of a folder at one moment.

    Attributes:
      objects: Metadata of every object below the folder, by path relative to the folder.
    """

    objects: dict[str, ObjectInfo]

    @abstractmethod
    def delete(self, first: str = "") -> None:
        """Deletes the listed objects, `first` before the others. Objects written later are kept."""


class Storage(ABC):
    """A folder of immutable objects and of a few that are replaced under a precondition."""

    root: str

    @abstractmethod
    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """Reads an object, or at most `size` bytes of it starting at `offset`.

        Raises:
          FileNotFoundError: The object does not exist.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Writes an object atomically."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Returns whether the object exists."""

    @abstractmethod
    def list_folders(self, folder: str) -> list[str]:
        """Returns the sorted names of the folders directly in `folder`."""

    @abstractmethod
    def list_files(self, folder: str) -> list[str]:
        """Returns the sorted names of the objects directly in `folder`, including unfinished writes."""

    @abstractmethod
    def snapshot(self, folder: str) -> AbstractContextManager[FolderSnapshot]:
        """Lists everything below `folder`, including unfinished writes, and pins it while the context is open."""

    @abstractmethod
    def delete(self, path: str, version: str | None = None) -> None:
        """Deletes an object if it exists; with `version`, only if it is still at that version."""

    @abstractmethod
    def upload(self, local: Path, path: str) -> None:
        """Copies a local file into the storage and verifies the copy by checksum.

        Raises:
          FileNotFoundError: The local file does not exist.
        """

    @abstractmethod
    def download_folder(self, folder: str, local: Path) -> None:
        """Copies every object below `folder` into a local folder and verifies the copies by checksum."""

    @abstractmethod
    def read_version(self, path: str) -> tuple[bytes | None, str]:
        """Returns an object's content, or None if it does not exist, and the version to pass to `replace`."""

    @abstractmethod
    def replace(self, path: str, data: bytes, version: str) -> None:
        """Replaces an object if it is still at `version`.

        Raises:
          ConflictError: Another writer replaced it first.
        """

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless there is one; returns whether it was written."""
        found, version = self.read_version(path)
        if found is not None:
            return False
        try:
            self.replace(path, data, version)
        except ConflictError:
            return False
        return True

    @abstractmethod
    def modified(self, path: str) -> datetime:
        """Returns the time (UTC) of an object's last write, by the storage's clock.

        Raises:
          FileNotFoundError: The object does not exist.
        """

    @abstractmethod
    def now(self) -> datetime:
        """Returns the time (UTC) by the storage's clock, so that ages do not depend on the local clock.

        This writes to the storage.
        """

    def delete_folder(self, folder: str) -> None:
        """Deletes everything below `folder`."""
        with self.snapshot(folder) as snapshot:
            snapshot.delete()

    def __str__(self) -> str:
        return self.root


def list_records(storage: Storage, folder: str) -> list[str]:
    """Returns the sorted names of the JSON objects directly in `folder`, without unfinished writes."""
    return [name for name in storage.list_files(folder) if name.endswith(".json") and not name.startswith(".")]


def list_abandoned(storage: Storage, folder: str, limit: datetime) -> list[str]:
    """Returns the paths of unfinished writes directly in `folder` that have not been continued since `limit`."""
    paths = [f"{folder}/{name}" for name in storage.list_files(folder) if is_temporary(name)]
    return [path for path in paths if is_older(storage, path, limit)]


def is_older(storage: Storage, path: str, limit: datetime) -> bool:
    """Returns whether an object exists and was last written at `limit` or before."""
    try:
        return storage.modified(path) <= limit
    except FileNotFoundError:
        return False


def check_path(path: str) -> str:
    """Returns `path` if it stays inside the storage's root.

    Raises:
      UsageError: The path is absolute, empty or contains `..`.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise UsageError(f"path {path!r} leaves its storage; expected a relative path without '..'")
    return path
