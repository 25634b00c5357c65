"""Compiles functions with Numba and caches the machine code, since compiling all of them takes half a minute.

Numba caches beside the code or, if that is not writable, in the user's cache folder. A service often has neither: its
installation belongs to root, and its user has no home folder. `offer_cache` then makes Numba use a folder of the
workspace. Without any folder, functions are compiled in every process.

Run as a program, `python -m indexer.compiled_code WORKSPACE` compiles a function and prints the folder of the cache,
or an empty line if there is none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from searchforge.artifacts.workspace import Workspace
from searchforge.errors import SearchforgeError


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorator for functions that Numba compiles, without the GIL and, where a folder is writable, with a cache.

    Args:
      options: Further options of `numba.njit`.
    """
    if function is None:
        return functools.partial(compiled, **options)
    try:
        return numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # no folder is writable
        return numba.njit(nogil=True, **options)(function)


def cache_folder() -> str:
    """Returns the folder in which Numba caches this package's machine code; empty if there is none."""
    try:
        return str(numba.njit(cache=True)(_total).stats.cache_path)
    except RuntimeError:
        return ""


def offer_cache(root: str) -> None:
    """Makes Numba use the cache of a workspace if it has no other; NUMBA_CACHE_DIR takes precedence.

    The folder is only used if it belongs to the current user and nobody else can write to it, because Numba executes
    what it contains. Call this before a module with compiled functions is imported.
    """
    if cache_folder():
        return
    with contextlib.suppress(SearchforgeError, OSError):
        folder = Workspace(root).cache("numba")
        state = folder.stat()
        if state.st_uid == os.getuid() and not state.st_mode & 0o022:
            numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = str(folder)  # also for child processes


def _total(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


if __name__ == "__main__":
    offer_cache(sys.argv[1])
    if numba.njit(_total)(np.ones(3)) != 3:
        sys.exit("a compiled function returns a wrong result")
    print(cache_folder())
