"""Folders of captioned images, on disk or in a bucket: names are looked up, spelled as in the folder, and hashed."""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath

from searchforge.captions.image_reader import ImageReader
from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes, sha256_file
from searchforge.storage import buckets
from searchforge.storage.base import GCS_SCHEME

Version = tuple[int, int, int]
"""Size of a file in bytes and two numbers that change with its content, such as times in nanoseconds."""


class ImageFolder(ABC):
    """A folder of images; names are relative to it and use `/`.

    Attributes:
      root: Path of the folder, or its URL in a bucket.
      readers: Number of images to read at once.
    """

    root: str
    readers: int = min(16, 2 * (os.cpu_count() or 1))

    @abstractmethod
    def relative(self, path: PurePosixPath) -> PurePosixPath:
        """Returns an absolute path relative to the folder if it is below it, else unchanged."""

    @abstractmethod
    def fault(self, name: PurePosixPath) -> tuple[str, str] | None:
        """Returns reason and detail if a name is not that of a file below the folder, else None."""

    @abstractmethod
    def names(self, folder: PurePosixPath) -> list[str]:
        """Returns the names of the files and folders directly in a folder; none if it does not exist."""

    @abstractmethod
    def uri(self, name: str) -> str:
        """Returns the path or URI of an image."""

    @abstractmethod
    def version(self, uri: str) -> Version:
        """Returns the version of an image; raises OSError if there is none."""

    @abstractmethod
    def sha256(self, uri: str) -> str:
        """Returns the SHA-256 of an image's bytes; raises OSError if they cannot be read."""

    def __init__(self) -> None:
        self._spellings: dict[PurePosixPath, dict[str, str]] = {}

    def locate(self, split: str, name: str) -> str:
        """Adds the folder named after the split, which COCO's file names lack, if the file is there."""
        inner = PurePosixPath(split, name)
        if ".." in inner.parts:
            return name
        inner = PurePosixPath(self.spell(str(inner)))
        return name if self.fault(inner) else str(inner)

    def spell(self, name: str) -> str:
        """Returns a name as its file and folders spell it, which may be in another Unicode normal form."""
        if name.isascii():
            return name
        folder = PurePosixPath()
        for part in PurePosixPath(name).parts:
            if folder not in self._spellings:
                found = self.names(folder)
                normal = {unicodedata.normalize("NFC", entry): entry for entry in found}
                self._spellings[folder] = normal | {entry: entry for entry in found}
            spellings = self._spellings[folder]
            folder /= spellings.get(part) or spellings.get(unicodedata.normalize("NFC", part), part)
        return str(folder)


class LocalImageFolder(ImageFolder):
    """A folder on disk. Each of its folders is listed once.

    Raises:
      UsageError: The folder does not exist.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        if not root.is_dir():
            raise UsageError(f"image folder {root} does not exist; set data.images (--images) to the captions' folder")
        self.root = str(root)
        self._root = root
        self._real_root = root.resolve()
        self._files: dict[PurePosixPath, dict[str, bool] | None] = {}

    def relative(self, path: PurePosixPath) -> PurePosixPath:
        base = PurePosixPath(self._root.absolute())
        return path.relative_to(base) if base in path.parents else path

    def fault(self, name: PurePosixPath) -> tuple[str, str] | None:
        files = self._list(name.parent)
        if files is None:
            return "outside", f"{str(name)!r} is reached through a link that leaves the image folder"
        if name.name not in files:
            return "missing", repr(str(name))
        if files[name.name] and not (self._root / name).resolve().is_relative_to(self._real_root):
            return "outside", f"{str(name)!r} is a link that leaves the image folder"
        return None

    def names(self, folder: PurePosixPath) -> list[str]:
        try:
            return os.listdir(self._root / folder)  # noqa: PTH208  names are enough
        except OSError:
            return []

    def uri(self, name: str) -> str:
        return str(self._root / name)

    def version(self, uri: str) -> Version:
        status = os.stat(uri)  # noqa: PTH116  constructing a Path doubles the cost
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def sha256(self, uri: str) -> str:
        return sha256_file(Path(uri))

    def _list(self, folder: PurePosixPath) -> dict[str, bool] | None:
        """Returns the files of a folder, each with whether it is a link; None if the folder is outside the root."""
        if folder not in self._files:
            path = self._root / folder
            files: dict[str, bool] | None = {}
            try:
                if not path.resolve().is_relative_to(self._real_root):
                    files = None
                elif path.is_dir():
                    with os.scandir(path) as entries:
                        files = {entry.name: entry.is_symlink() for entry in entries if _is_file(entry)}
            except (OSError, RuntimeError):  # an invalid name or an unreadable folder
                files = {}
            self._files[folder] = files
        return self._files[folder]


class BucketImageFolder(ImageFolder):
    """A folder in Google Cloud Storage, which is listed once.

    Args:
      root: URL of the form gs://bucket/folder.
      reader: Reads the images, and caches them for the towers.

    Raises:
      UsageError: There is no such folder or bucket, or there are no credentials.
      JobError: The bucket may not be read, or cannot be reached.
    """

    readers = 32  # reading waits for the network

    def __init__(self, root: str, reader: ImageReader) -> None:
        super().__init__()
        self.root = root.rstrip("/")
        self._reader = reader
        prefix = f"{self.root}/"
        with buckets.converted_errors(prefix):
            found = list(buckets.list_objects(prefix))
        if not found:
            raise UsageError(
                f"image folder {root} contains no objects; set data.images (--images) to the captions' folder"
            )
        self._versions = {one.uri[len(prefix) :]: (one.size, int(one.generation), 0) for one in found}
        self._folders: dict[PurePosixPath, set[str]] = {}
        for name in self._versions:
            path = PurePosixPath(name)
            for parent in path.parents:
                self._folders.setdefault(parent, set()).add(path.name)
                path = parent

    def relative(self, path: PurePosixPath) -> PurePosixPath:
        return path

    def fault(self, name: PurePosixPath) -> tuple[str, str] | None:
        return None if str(name) in self._versions else ("missing", repr(str(name)))

    def names(self, folder: PurePosixPath) -> list[str]:
        return sorted(self._folders.get(folder, ()))

    def uri(self, name: str) -> str:
        return f"{self.root}/{name}"

    def version(self, uri: str) -> Version:
        return self._versions[uri[len(self.root) + 1 :]]

    def sha256(self, uri: str) -> str:
        return sha256_bytes(self._reader.read(uri))


def open_image_folder(root: str, reader: ImageReader) -> ImageFolder:
    """Opens a local folder or gs://bucket/folder; raises the errors of LocalImageFolder and BucketImageFolder."""
    if root.startswith(GCS_SCHEME):
        return BucketImageFolder(root, reader)
    if "://" in root:
        raise UsageError(f"image folder {root} is not supported; expected a local folder or gs://bucket/folder")
    return LocalImageFolder(Path(root))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that points to itself
        return False
