"""One storage interface over a local folder and gs://bucket/prefix.

Paths are relative to the storage's root and use `/`. A write is whole or not there. A mutable object is replaced
only if it is still the version that was read (GCS: generation precondition; local: content under a lock).
What fails for good is a JobError that names the object; what passes by itself is tried again first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from searchforge.errors import UsageError

GCS_SCHEME = "gs://"


class Object(NamedTuple):
    """What a listing tells of an object.

    Attributes:
      bytes: its size.
      modified: when it was written, by the storage's clock.
    """

    bytes: int
    modified: datetime


class Snapshot(ABC):
    """A folder as it is in one moment.

    Attributes:
      objects: below the folder, by their path in it.
    """

    objects: dict[str, Object]

    @abstractmethod
    def delete(self, first: str = "") -> None:
        """Deletes these very objects, `first` before the others; what was written to the folder since stays."""


class Storage(ABC):
    """A folder of immutable objects and of a few that are replaced under a precondition."""

    root: str

    @abstractmethod
    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """Reads an object, or at most `size` bytes of it from `offset` on.

        Raises:
          FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Writes an object whole."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the object is there."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names of the folders directly in `folder`, sorted."""

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """Names of the objects directly in `folder`, sorted; unfinished writes are among them."""

    @abstractmethod
    def snapshot(self, folder: str) -> AbstractContextManager[Snapshot]:
        """Holds on to what is below `folder` now, unfinished writes among it."""

    @abstractmethod
    def delete(self, path: str, version: str | None = None) -> None:
        """Deletes an object that may be gone already; with `version`, only if it still is at that version."""

    @abstractmethod
    def upload(self, local: Path, path: str) -> None:
        """Copies a local file; what arrives is verified by checksum.

        Raises:
          FileNotFoundError: there is no such local file.
        """

    @abstractmethod
    def download_folder(self, folder: str, local: Path) -> None:
        """Copies every object under `folder` into a local folder; what arrives is verified by checksum."""

    @abstractmethod
    def read_version(self, path: str) -> tuple[bytes | None, str]:
        """Returns an object's content (None where it is absent) and the version to hand to `replace`."""

    @abstractmethod
    def replace(self, path: str, data: bytes, version: str) -> None:
        """Replaces an object if it is still at `version`.

        Raises:
          ConflictError: somebody else replaced it first.
        """

    @abstractmethod
    def modified(self, path: str) -> datetime:
        """When an object was written (UTC), by the storage's clock.

        Raises:
          FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def now(self) -> datetime:
        """The time (UTC) by the storage's clock: ages are right whatever this machine's clock says. It is a write."""

    def delete_folder(self, folder: str) -> None:
        """Deletes everything below `folder`."""
        with self.snapshot(folder) as snapshot:
            snapshot.delete()

    def __str__(self) -> str:
        return self.root


def check_path(path: str) -> str:
    """Returns `path` if it stays inside its root, else raises UsageError."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise UsageError(f"path {path!r} leaves its storage; expected a relative path without '..'")
    return path
