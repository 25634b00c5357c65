"""Files that tests make once and keep on disk, named by a hash of everything that they depend on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from searchforge.hashing import content_id

ROOT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "searchforge" / "tests"
"""Where they are kept between runs. It may be deleted whenever no test is running."""


def cached(name: str, key: Any, make: Callable[[Path], None], root: Path = ROOT) -> Path:
    """Returns the folder that `make` filled for this key: once, whichever process comes first. It is only to be read.

    Args:
      name: what the folder's name begins with.
      key: everything that its content depends on, as JSON, such as the source of the module that makes it
        (`source`), arguments, and versions of packages (`versions`).
      make: fills the empty folder that it is given. If it raises, nothing is kept.
    """
    folder = root / f"{name}-{content_id(key)}"
    if folder.exists():
        return folder
    with lock(folder.name, root):
        if not folder.exists():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # its maker was killed
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@contextlib.contextmanager
def lock(name: str, root: Path = ROOT) -> Iterator[None]:
    """Holds the lock of that name, for which other processes and threads wait."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def source(module_file: str) -> str:
    """The source of the module whose `__file__` is given."""
    return Path(module_file).read_text()


def versions(*packages: str) -> list[str]:
    """The installed versions of packages."""
    return [version(package) for package in packages]
