"""Reads embeddings from a NumPy matrix beside a file of ids, in batches of rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.corpus.metadata import parse_object
from beam_jobs.exchange.batches import ROWS, Batch
from beam_jobs.exchange.columns import ID
from searchforge.errors import UsageError

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpyEmbeddings:
    """A `.npy` file with a matrix [n, dim] of floats, and a file with an id for each row; see EmbeddingFile.

    Args:
      ids: `.jsonl`, with an object that has an `id` in each line, or text with an id in each line. Default: the file
        beside the matrix that is called like it or `ids`, with the suffix .jsonl or .txt.

    Raises:
      UsageError: The matrix has another form, or there is no file of ids.
    """

    fingerprint = ""

    def __init__(self, path: Path, dim: int, ids: Path | None = None) -> None:
        self.name, self._path = str(path), path
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                if version not in _READERS:
                    raise ValueError(f"version {version} of the format")
                shape, column_major, dtype = _READERS[version](file)
                self._start = file.tell()
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as a NumPy array: {error}") from None
        if len(shape) != 2 or shape[1] != dim or not np.issubdtype(dtype, np.floating) or column_major:
            order = " in column-major order" if column_major else ""
            raise UsageError(
                f"{path} is {dtype}{list(shape)}{order}; expected floats [n, {dim}], the dimension of the encoder, in "
                "row-major order (numpy.ascontiguousarray)"
            )
        size = path.stat().st_size - self._start
        if size != shape[0] * dim * dtype.itemsize:
            raise UsageError(f"{path} has {size} bytes of numbers; expected {shape[0] * dim * dtype.itemsize}")
        self.rows, self._dim, self._dtype = int(shape[0]), dim, dtype
        self.ids = ids or self._ids_beside()

    def _ids_beside(self) -> Path:
        names = [f"{stem}{suffix}" for stem in (self._path.stem, "ids") for suffix in (".jsonl", ".txt")]
        for name in names:
            if (found := self._path.parent / name).is_file():
                return found
        raise UsageError(f"{self._path} has no file of ids beside it ({', '.join(names)}); give it with --ids")

    def batches(self) -> Iterator[Batch]:
        lines = self._lines()
        with self._path.open("rb") as file:
            file.seek(self._start)
            for first in range(0, self.rows, ROWS):
                count = min(ROWS, self.rows - first)
                numbers = np.fromfile(file, self._dtype, count * self._dim)
                if len(numbers) != count * self._dim:
                    raise UsageError(f"{self.name} ends within row {first + len(numbers) // self._dim}")
                fields = list(itertools.islice(lines, count))
                if len(fields) < count:
                    raise UsageError(
                        f"{self.ids} has {first + len(fields)} ids, but {self.name} has {self.rows} rows; expected one "
                        "for each row"
                    )
                yield Batch(numbers.reshape(count, self._dim), fields)
        if next(lines, None) is not None:
            raise UsageError(
                f"{self.ids} has more than {self.rows} ids, the rows of {self.name}; expected one for each"
            )

    def _lines(self) -> Iterator[dict[str, Any]]:
        objects = self.ids.suffix == ".jsonl"
        try:
            with self.ids.open("rb") as file:
                for number, line in enumerate(file, 1):
                    text = line.removesuffix(b"\n").removesuffix(b"\r")
                    try:
                        yield parse_object(text) if objects else {ID: text.decode()}
                    except ValueError as error:
                        raise UsageError(f"{self.ids}, line {number}: {error}") from None
        except OSError as error:
            raise UsageError(f"{self.ids} cannot be read: {error.strerror}") from None
