"""Keeps notices that native libraries write to stderr out of a command's output."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def import_quietly(module: str) -> None:
    """Imports a module whose native code writes to stderr before it can be configured."""
    with discarded_stderr():
        importlib.import_module(module)


@contextlib.contextmanager
def discarded_stderr() -> Iterator[None]:
    """Discards everything written to stderr in the block, including output of native code."""
    sys.stderr.flush()
    original = os.dup(2)
    try:
        with Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), 2)
            yield
    finally:
        os.dup2(original, 2)
        os.close(original)
