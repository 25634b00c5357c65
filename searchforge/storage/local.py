"""Storage in a local folder: writes are renames of whole, synced files, and replacements happen under a file lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from searchforge.errors import ConflictError, JobError
from searchforge.hashing import sha256_bytes
from searchforge.storage.base import Object, Snapshot, Storage, check_path

LOCK_SECONDS = 30.0
"""How long a replacement waits for another one, which takes milliseconds unless its process is stopped."""

_COPY_BYTES = 1 << 20

_ADVICE = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.EACCES: "change its permissions, or choose another folder",
    errno.EPERM: "change its permissions, or choose another folder",
    errno.EROFS: "choose a folder that can be written to",
}


class LocalStorage(Storage):
    """A local folder.

    Args:
      root: the folder.
      lock_seconds: how long a replacement waits for another one.
    """

    def __init__(self, root: str, lock_seconds: float = LOCK_SECONDS) -> None:
        self.root = str(Path(root).expanduser().resolve())
        self._lock_seconds = lock_seconds

    def path(self, path: str) -> Path:
        """The local path of an object."""
        return Path(self.root) / check_path(path)

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        with _reports_errors(self.path(path)), self.path(path).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if size is None else size)

    def write(self, path: str, data: bytes) -> None:
        with self._replacing(path) as file:
            file.write(data)

    def exists(self, path: str) -> bool:
        with _reports_errors(self.path(path)):
            return self.path(path).is_file()

    def names(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())

    def files(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_file())

    @contextlib.contextmanager
    def snapshot(self, folder: str) -> Iterator[Snapshot]:
        path = self.path(folder)
        snapshot = LocalSnapshot(path)
        try:
            yield snapshot
        finally:
            snapshot.close()

    def delete(self, path: str, version: str | None = None) -> None:
        target = self.path(path)
        with _reports_errors(target):
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
        with _reports_errors(self.path(folder)):
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
                raise ConflictError(f"{target} was replaced by another writer; read it again and decide anew")
            self.write(path, data)

    def modified(self, path: str) -> datetime:
        with _reports_errors(self.path(path)):
            return _time(self.path(path).stat())

    def now(self) -> datetime:
        make_folder(Path(self.root))
        with _reports_errors(Path(self.root)), tempfile.TemporaryFile(dir=self.root) as file:
            return _time(os.fstat(file.fileno()))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        path = self.path(folder)
        with _reports_errors(path):
            try:
                with os.scandir(path) as entries:
                    return list(entries)
            except (FileNotFoundError, NotADirectoryError):
                return []

    @contextlib.contextmanager
    def _replacing(self, path: str) -> Iterator[BinaryIO]:
        target = self.path(path)
        make_folder(target.parent)
        with _reports_errors(target):
            descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(descriptor)
                Path(name).chmod(0o644)  # mkstemp's own mode shuts out every other reader
                Path(name).replace(target)
                sync_folder(target.parent)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise


class LocalSnapshot(Snapshot):
    """A folder held by its descriptor: another folder that takes its name meanwhile is not touched."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.objects = {}
        self._descriptor: int | None = None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), _reports_errors(path):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            self.objects = dict(_objects(self._descriptor))

    def delete(self, first: str = "") -> None:
        if self._descriptor is None:
            return
        with _reports_errors(self._path):
            if first:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(first, dir_fd=self._descriptor)
            for name in sorted(self.objects):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._descriptor)
            _remove_empty_folders(self._descriptor)
            # A folder that another writer completed under this name is not empty, and stays.
            with contextlib.suppress(OSError):
                self._path.rmdir()

    def close(self) -> None:
        """Lets go of the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def make_folder(path: Path) -> None:
    """Creates a folder and its parents.

    Raises:
      JobError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"folder {path} cannot be created: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise JobError(f"folder {path} is not writable; choose another one or change its permissions")


def sync_files(path: Path) -> None:
    """Makes everything below a folder survive a power failure."""
    with _reports_errors(path):
        for folder, _, names in os.walk(path):
            for name in names:
                with (Path(folder) / name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(target: Path, seconds: float = LOCK_SECONDS) -> Iterator[Path]:
    """Holds the lock of a mutable file; yields the file that is locked, which its holder may delete.

    The kernel releases a lock when its holder dies; a stopped holder keeps it.

    Raises:
      JobError: another process has held it for so many seconds.
    """
    path = target.parent / f".{target.name}.lock"
    deadline = time.monotonic() + seconds
    while True:
        with _reports_errors(path):
            file = path.open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise JobError(
                        f"{path} has been locked for {seconds:.0f} s by process {file.read() or '(unknown)'}; if "
                        "it is stopped, continue or end it (`kill -CONT` or `kill -KILL`), and the lock goes with it"
                    ) from None
            else:
                if not _is_at(file.fileno(), path):
                    continue  # its holder deleted it, and others lock the next one
                with contextlib.suppress(OSError):  # on a full disk only the name of the holder is lost
                    file.truncate(0)
                    file.write(str(os.getpid()))
                    file.flush()
                yield path
                return
        time.sleep(random.uniform(0.002, 0.02))


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _reports_errors(path: Path) -> Iterator[None]:
    """Turns what the file system answers into an error for the user; a missing file remains one."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the folder and its file system")
        raise JobError(f"{path} cannot be used: {error.strerror}; {advice}") from error


def _objects(folder: int, prefix: str = "") -> Iterator[tuple[str, Object]]:
    """Yields the files below an open folder; those that are deleted meanwhile are left out."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            with contextlib.suppress(FileNotFoundError):  # it was deleted after it was listed
                if entry.is_dir(follow_symlinks=False):
                    with _subfolder(folder, entry.name) as inner:
                        yield from _objects(inner, f"{prefix}{entry.name}/")
                else:
                    status = entry.stat(follow_symlinks=False)
                    yield f"{prefix}{entry.name}", Object(status.st_size, _time(status))


def _remove_empty_folders(folder: int) -> None:
    """Removes the empty folders below an open one."""
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
