"""Caches features on disk, keyed by tower, augmentation and content; see trainer.features.extraction.

Each file holds the features of one chunk of inputs with one augmentation, and is written atomically. Folders are named
by tower, preprocessing and augmentation, and rows by the SHA-256 of their input, so that only inputs that are not in
the cache need computing.
"""

from __future__ import annotations

import contextlib
import io
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
from searchforge.storage.files import atomic_write

_CORRUPT = (EOFError, ValueError, KeyError, BadZipFile, zlib.error)
"""Errors of reading a damaged file."""

Array = npt.NDArray[Any]
RowLocations = dict[str, tuple[Path, int]]
"""File, and row in that file, by key."""


class FeatureCache:
    """A folder of cached features, shared by all towers.

    Args:
      root: The folder; it is created on the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def name(self, modality: str, fingerprint: str, augmentation: str) -> str:
        """Returns the name of the subfolder for a tower and an augmentation."""
        return content_id([modality, fingerprint, augmentation])

    def keys(self, name: str) -> set[str]:
        """Returns the cached keys, without checking that their values are intact."""
        keys: set[str] = set()
        for path in (self._root / name).glob("*.npz"):
            with contextlib.suppress(OSError, *_CORRUPT), np.load(path, allow_pickle=False) as file:
                keys.update(key.decode() for key in file["keys"])
        return keys

    def index(self, name: str) -> RowLocations:
        """Returns the locations of all cached inputs, and deletes damaged files."""
        locations: RowLocations = {}
        for path in sorted((self._root / name).glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    locations.update({key.decode(): (path, row) for row, key in enumerate(file["keys"])})
                    file["values"]  # detects damage
            except _CORRUPT:
                path.unlink(missing_ok=True)
            except OSError:
                continue
        return locations

    def write(self, name: str, keys: Sequence[str], values: Array) -> RowLocations:
        """Writes the features of a chunk and returns their locations.

        Args:
          keys: n keys.
          values: float32 [n, width].

        Raises:
          JobError: The folder is not writable.
        """
        folder = self._root / name
        path = folder / f"{content_id(list(keys))}.npz"
        content = io.BytesIO()  # NumPy's writer prints a stack trace if the disk is full
        np.savez(content, keys=np.array(keys, "S64"), values=values)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(content.getbuffer())
        except OSError as error:
            raise JobError(
                f"features cannot be written to {folder}: {error.strerror}; free some space in the workspace"
            ) from error
        return {key: (path, row) for row, key in enumerate(keys)}

    def gather(self, keys: Sequence[str], rows: Mapping[str, tuple[Path, int]]) -> Array:
        """Returns the features of the keys, float32 [n, width], in order; reads each file once."""
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for position, key in enumerate(keys):
            path, row = rows[key]
            by_file.setdefault(path, []).append((position, row))
        gathered = np.zeros((len(keys), 0), np.float32)
        for path, pairs in by_file.items():
            os.utime(path)  # marks the file as recently used
            with np.load(path, allow_pickle=False) as file:
                values = file["values"]
            if gathered.shape[1] == 0:
                gathered = np.empty((len(keys), values.shape[1]), np.float32)
            positions, numbers = zip(*pairs, strict=True)
            gathered[list(positions)] = values[list(numbers)]
        return gathered
