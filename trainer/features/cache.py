"""Features on disk, by tower, view and content; see trainer.features.extraction.

Each file holds the features of one chunk of inputs in one view, and is written under a temporary name and then renamed.
Files are found by the tower's fingerprint, its preprocessing and the view, rows by the SHA-256 of their input, so that
a changed corpus adds only what is missing.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from searchforge.errors import JobError
from searchforge.hashing import content_id

_DAMAGE = (EOFError, ValueError, KeyError, BadZipFile, zlib.error)

Array = npt.NDArray[Any]
RowLocations = dict[str, tuple[Path, int]]
"""File and row in it by key."""


class FeatureCache:
    """A folder with the features of any towers.

    Args:
      root: the folder; it is made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def name(self, modality: str, fingerprint: str, view: str) -> str:
        """Returns the name under which a tower's features of a view are kept."""
        return content_id([modality, fingerprint, view])

    def keys(self, name: str) -> set[str]:
        """Returns the keys that all files list, without reading their values: a quick estimate."""
        found: set[str] = set()
        for path in (self._root / name).glob("*.npz"):
            with contextlib.suppress(OSError, *_DAMAGE), np.load(path, allow_pickle=False) as file:
                found.update(key.decode() for key in file["keys"])
        return found

    def index(self, name: str) -> RowLocations:
        """Returns where every cached input is; a damaged file counts as absent and is computed again."""
        found: RowLocations = {}
        for path in sorted((self._root / name).glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    found.update({key.decode(): (path, row) for row, key in enumerate(file["keys"])})
                    file["values"]  # damage shows here and not when the rows are needed
            except _DAMAGE:
                path.unlink(missing_ok=True)
            except OSError:
                continue
        return found

    def write(self, name: str, keys: Sequence[str], values: Array) -> RowLocations:
        """Writes the features of a chunk, float32 [n, width], and returns where they are.

        Raises:
          JobError: the folder cannot be written to.
        """
        folder = self._root / name
        path = folder / f"{content_id(list(keys))}.npz"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, keys=np.array(keys, "S64"), values=values)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):  # the same fault may hold it back
                temporary.unlink(missing_ok=True)
            raise JobError(f"features cannot be written to {folder}: {error.strerror}") from error
        return {key: (path, row) for row, key in enumerate(keys)}

    def gather(self, keys: Sequence[str], rows: Mapping[str, tuple[Path, int]]) -> Array:
        """Returns float32 [n, width] of the keys, in their order, reading each file once."""
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for position, key in enumerate(keys):
            path, row = rows[key]
            by_file.setdefault(path, []).append((position, row))
        gathered = np.zeros((len(keys), 0), np.float32)
        for path, pairs in by_file.items():
            os.utime(path)  # says that it is used, for whoever tidies up
            with np.load(path, allow_pickle=False) as file:
                values = file["values"]
            if gathered.shape[1] == 0:
                gathered = np.empty((len(keys), values.shape[1]), np.float32)
            positions, numbers = zip(*pairs, strict=True)
            gathered[list(positions)] = values[list(numbers)]
        return gathered
