"""A disk cache for files that tests create, keyed by a hash of everything that they depend on."""

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
"""Folder of the cache. It can be deleted whenever no test is running."""


def cached(name: str, key: Any, make: Callable[[Path], None], root: Path = ROOT) -> Path:
    """Returns the cached folder for a key, which callers must not modify; `make` fills it once across all processes.

    Args:
      name: Prefix of the folder's name.
      key: JSON value of everything that the content depends on, such as the source of the module that creates it
        (`source`), arguments, and package versions (`versions`).
      make: Function that fills the empty folder it is given. If it raises, nothing is cached.
    """
    folder = root / f"{name}-{content_id(key)}"
    if folder.exists():
        return folder
    with lock(folder.name, root):
        if not folder.exists():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@contextlib.contextmanager
def lock(name: str, root: Path = ROOT) -> Iterator[None]:
    """Holds the named lock, which excludes other processes and threads."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def source(module_file: str) -> str:
    """Returns the source code of a module, given its `__file__`."""
    return Path(module_file).read_text()


def versions(*packages: str) -> list[str]:
    """Returns the installed versions of packages."""
    return [version(package) for package in packages]
