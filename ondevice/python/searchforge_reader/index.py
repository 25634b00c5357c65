"""An open index: searches it by vectors, and reads what is stored with it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from searchforge_reader.library import RawHit, check, load
from searchforge_reader.tokenizer import Tokenizer

_LOOKUP_TYPES = ("float", "int16", "int8")
_METADATA_BYTES = 1024
"""Room for an item's metadata; if it is longer, it is read a second time."""


class Hit(NamedTuple):
    """One result.

    Attributes:
      item: Number of the item in the index.
      score: Dot product of query and item as the index approximates it; higher is better.
      metadata: Metadata of the item, JSON with its `id`.
    """

    item: int
    score: float
    metadata: bytes


class Index:
    """A searcher (`text_searcher.tflite`, `image_searcher.tflite`) or an index (`.ldb`), opened for search.

    Several threads may search it at once. The file must not be truncated while it is open; replace it by renaming
    another file.

    Args:
      path: The file.

    Attributes:
      items: Number of items.
      dim: Number of dimensions of a query.
      partitions: Number of partitions.
      partitions_searched: Number of partitions that a query searches by default.
      code_bytes: Bytes of an item's code.
      lookup_type: Element type of the look-up tables: `float`, `int16` or `int8`.
      user_info: Text that the indexer stored, JSON.

    Raises:
      DamagedFile: The file contradicts its format.
      UnsupportedFile: The file is valid, but the reader cannot search it.
      ValueError: The file contains no index.
      OSError: The file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._handle = ctypes.c_void_p()
        self._library = load()
        check(self._library.sf_open_path(os.fsencode(path), ctypes.byref(self._handle)))
        shape = self._library.sf_get_shape(self._handle)
        self.items: int = shape.items
        self.dim: int = shape.dim
        self.partitions: int = shape.partitions
        self.partitions_searched: int = shape.partitions_searched
        self.code_bytes: int = shape.code_bytes
        self.lookup_type: str = _LOOKUP_TYPES[shape.lookup_type]
        length = ctypes.c_size_t()
        info = self._library.sf_user_info(self._handle, ctypes.byref(length))
        self.user_info: str = ctypes.string_at(info, length.value).decode(errors="replace")

    def search(
        self, vector: npt.NDArray[np.float32] | Sequence[float], k: int = 10, partitions: int | None = None
    ) -> list[Hit]:
        """Returns the k items with the highest scores, best first; fewer if the partitions hold fewer.

        Args:
          vector: [dim] float32, as the searcher's encoder returns it.
          partitions: Number of the nearest partitions to search; None for the index's own number.

        Raises:
          ValueError: The vector has another number of dimensions or is not finite, k is below 1, or there are fewer
            partitions.
          DamagedFile: A part of the file that the query needs is damaged.
        """
        query = np.ascontiguousarray(vector, np.float32)
        if query.ndim != 1 or k < 1 or not (partitions is None or 1 <= partitions <= self.partitions):
            raise ValueError(
                f"a vector of shape {list(query.shape)}, k {k} and partitions {partitions}, expected [{self.dim}], "
                f"1 or more, and None or 1 to {self.partitions}"
            )
        hits, found = (RawHit * min(k, max(self.items, 1)))(), ctypes.c_size_t()
        check(
            self._library.sf_search(
                self._opened(), query.ctypes.data, len(query), len(hits), partitions or 0, hits, ctypes.byref(found)
            )
        )
        return [Hit(hit.item, hit.score, self.metadata(hit.item)) for hit in hits[: found.value]]

    def metadata(self, item: int) -> bytes:
        """Returns an item's metadata.

        Raises:
          ValueError: There are fewer items.
          DamagedFile: The metadata is damaged.
        """
        if not 0 <= item < self.items:
            raise ValueError(f"item {item} was asked for, but the index has {self.items} items, numbered from 0")
        room = _METADATA_BYTES
        while True:
            target, length = ctypes.create_string_buffer(room), ctypes.c_size_t()
            check(self._library.sf_metadata(self._opened(), item, target, room, ctypes.byref(length)))
            if length.value <= room:
                return target.raw[: length.value]
            room = length.value

    def files(self) -> dict[str, bytes]:
        """Returns the files inside a searcher by name, such as the tokenizer's vocabulary, without the index."""
        contents: dict[str, bytes] = {}
        for number in range(self._library.sf_file_count(self._opened())):
            size = ctypes.c_uint64()
            name = self._library.sf_file_name(self._opened(), number, ctypes.byref(size)).decode(errors="replace")
            target = ctypes.create_string_buffer(size.value)
            check(self._library.sf_read_file(self._opened(), number, 0, size.value, target))
            contents[name] = target.raw
        return contents

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of a text searcher's encoder, which outlives the index.

        Raises:
          UnsupportedFile: The file has no tokenizer, or one that the library lacks.
          DamagedFile: The tokenizer is damaged.
        """
        tokenizer = ctypes.c_void_p()
        check(self._library.sf_open_tokenizer(self._opened(), ctypes.byref(tokenizer)))
        return Tokenizer(tokenizer)

    def verify(self) -> None:
        """Reads the whole index and verifies every checksum, every code, and that every item has metadata.

        Raises:
          DamagedFile: Something is damaged; the message says what.
        """
        check(self._library.sf_verify(self._opened()))

    def close(self) -> None:
        """Closes the file. No other thread may be using the index."""
        self._library.sf_close(self._handle)
        self._handle = ctypes.c_void_p()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def _opened(self) -> ctypes.c_void_p:
        if not self._handle:
            raise ValueError("the index is closed; open it again")
        return self._handle
