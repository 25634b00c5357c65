"""Records the files that a test's process opens, from Python's audit events."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_recorders: list[tuple[str, list[Path]]] = []


@contextlib.contextmanager
def opened_files(folder: Path) -> Iterator[list[Path]]:
    """Yields a list that collects, in order, every file below `folder` that any thread opens."""
    recorder: tuple[str, list[Path]] = (f"{folder}{os.sep}", [])
    _recorders.append(recorder)
    try:
        yield recorder[1]
    finally:
        _recorders.remove(recorder)


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _recorders and event == "open" and isinstance(arguments[0], str):
        for prefix, found in _recorders:
            if arguments[0].startswith(prefix):
                found.append(Path(arguments[0]))


sys.addaudithook(_record)  # cannot be removed during the life of the process
