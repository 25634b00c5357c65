"""Local files: atomic writes, folders, durability and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from searchforge.errors import JobError

LOCK_SECONDS = 30.0
"""Seconds to wait for a lock. Its holder needs milliseconds unless its process is stopped."""

_ADVICE = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.EACCES: "change its permissions, or choose another folder",
    errno.EPERM: "change its permissions, or choose another folder",
    errno.EROFS: "choose a folder that can be written to",
}


@contextlib.contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` and renames it to `path` at the end; after an error `path` is unchanged.

    Args:
      durable: Whether the file must survive a power failure once it has its name.

    Raises:
      OSError: The file cannot be written.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(descriptor)
        Path(name).chmod(0o644)  # mkstemp creates files that only their owner can read
        Path(name).replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # may fail for the same reason
            Path(name).unlink(missing_ok=True)
        raise


def is_temporary(name: str) -> bool:
    """Returns whether a file's name is that of a temporary file of `atomic_write`."""
    return name.startswith(".") and name.endswith(".tmp")


def make_folder(path: Path) -> None:
    """Creates a folder and its parents.

    Raises:
      JobError: The folder cannot be created or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"folder {path} cannot be created: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise JobError(f"folder {path} is not writable; choose another one or change its permissions")


def sync_files(path: Path) -> None:
    """Flushes every file and folder below `path` to disk."""
    with converted_errors(path):
        for folder, _, names in os.walk(path):
            for name in names:
                with (Path(folder) / name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Flushes the directory entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(target: Path, seconds: float = LOCK_SECONDS) -> Iterator[Path]:
    """Holds the lock of a mutable file; yields the lock file, which its holder may delete.

    The kernel releases the lock when its holder dies, but not while it is stopped.

    Raises:
      JobError: Another process held the lock for `seconds`.
    """
    path = target.parent / f".{target.name}.lock"
    deadline = time.monotonic() + seconds
    while True:
        with converted_errors(path):
            file = path.open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise JobError(
                        f"{path} has been locked for {seconds:.0f} s by process {file.read() or '(unknown)'}; if "
                        "it is stopped, resume or kill it (`kill -CONT` or `kill -KILL`) to release the lock"
                    ) from None
            else:
                if not _is_at(file.fileno(), path):
                    continue  # its holder deleted it; lock its successor
                with contextlib.suppress(OSError):  # on a full disk only the holder's process id is lost
                    file.truncate(0)
                    file.write(str(os.getpid()))
                    file.flush()
                yield path
                return
        time.sleep(random.uniform(0.002, 0.02))


def _is_at(descriptor: int, path: Path) -> bool:
    """Returns whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def converted_errors(path: Path) -> Iterator[None]:
    """Converts OSError to JobError with advice; FileNotFoundError and NotADirectoryError pass."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the folder and its file system")
        raise JobError(f"{path} cannot be used: {error.strerror}; {advice}") from error
