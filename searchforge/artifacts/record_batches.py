"""Reads embedding runs as batches of columns, at a fraction of the time that single records take.

`EmbeddingRecord.to_bytes` writes its fields in a fixed order, so the values of many records are found at once by NumPy.
Records of other writers, which may use another order, are parsed one by one.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.manifest import Manifest, verified_shards
from searchforge.artifacts.records import TFRECORD_FRAMING, TFRECORD_HEADER, EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError

ROWS = 4096
"""Maximum number of records of a batch."""

_BYTES_LIST, _FLOAT_LIST = 0x0A, 0x12
_FIELDS = {
    b"content_hash": _BYTES_LIST,
    b"embedding": _FLOAT_LIST,
    b"id": _BYTES_LIST,
    b"metadata": _BYTES_LIST,
    b"place": _BYTES_LIST,
    b"uri": _BYTES_LIST,
    b"version": _BYTES_LIST,
}
"""Fields of a record in the order of the file, with the tag of the list that holds the value."""


@dataclass(frozen=True)
class RecordBatch:
    """Some records of an embedding run by column; see EmbeddingRecord.

    Attributes:
      vectors: [n, dim] float32, L2-normalised.
      metadata: JSON objects.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    uris: list[str]
    content_hashes: list[str]
    metadata: list[str]
    versions: list[str]
    byte_ranges: list[str]


def read_batches(workspace: Workspace, manifest: Manifest) -> Iterator[RecordBatch]:
    """Yields the live records of an embedding run, shard by shard, in batches of at most ROWS.

    Raises:
      JobError: A shard is missing, does not match its SHA-256 in the manifest, or is not one of embedding records.
    """
    for shard, path in verified_shards(workspace, manifest):
        if not shard.count:
            continue
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        starts, ends = _payloads(data, shard.name)
        live = np.setdiff1d(np.arange(len(starts)), shard.dead)
        for first in range(0, len(live), ROWS):
            rows = live[first : first + ROWS]
            yield _batch(data, starts[rows], ends[rows], manifest.dim)


def _payloads(data: mmap.mmap, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the start and the end of each TFRecord's payload."""
    starts, lengths, position = [], [], 0
    while position + TFRECORD_FRAMING <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        starts.append(position + TFRECORD_HEADER)
        lengths.append(length)
        position += TFRECORD_FRAMING + length
    if position != len(data):
        raise JobError(f"{name} ends within a record; embed it again")
    first = np.array(starts, np.int64)
    return first, first + np.array(lengths, np.int64)


_LENGTH = struct.Struct("<Q")


def _batch(data: mmap.mmap, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], dim: int) -> RecordBatch:
    found = _locate(np.frombuffer(data, np.uint8), starts, ends)
    if found is None or (found[b"embedding"][1] != 4 * dim).any():
        payloads = zip(starts.tolist(), ends.tolist(), strict=True)
        return _of_records([EmbeddingRecord.from_bytes(data[start:end]) for start, end in payloads], dim)

    def texts(field: bytes) -> list[str]:
        first, size = found[field]
        return [data[start:end].decode() for start, end in zip(first.tolist(), (first + size).tolist(), strict=True)]

    first = found[b"embedding"][0].tolist()
    vectors = np.frombuffer(b"".join([data[start : start + 4 * dim] for start in first]), "<f4").reshape(-1, dim)
    return RecordBatch(
        ids=texts(b"id"),
        vectors=vectors.astype(np.float32, copy=False),
        uris=texts(b"uri"),
        content_hashes=texts(b"content_hash"),
        metadata=texts(b"metadata"),
        versions=texts(b"version"),
        byte_ranges=texts(b"place"),
    )


def _of_records(records: Sequence[EmbeddingRecord], dim: int) -> RecordBatch:
    for record in records:
        if len(record.embedding) != dim:
            raise JobError(f"embedding of {record.id!r} has {len(record.embedding)} dimensions; expected {dim}")
    return RecordBatch(
        ids=[record.id for record in records],
        vectors=np.stack([record.embedding for record in records]),
        uris=[record.uri for record in records],
        content_hashes=[record.content_hash for record in records],
        metadata=[json.dumps(record.metadata, ensure_ascii=False, sort_keys=True) for record in records],
        versions=[record.version for record in records],
        byte_ranges=[record.byte_range for record in records],
    )


Located = dict[bytes, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
"""Start and size of a field's value in each record."""


def _locate(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Located | None:
    """Returns where the values of the records in [starts, ends) are; None unless all have the fields of `_FIELDS`."""
    cursor = _Cursor(data, starts, ends)
    found: Located = {}
    cursor.enter(b"\x0a")
    for field, list_tag in _FIELDS.items():
        cursor.enter(b"\x0a")
        cursor.expect(bytes([0x0A, len(field)]) + field)
        for tag in (0x12, list_tag):
            cursor.enter(bytes([tag]))
        size = cursor.enter(b"\x0a")
        found[field] = cursor.position, size
        cursor.position = cursor.position + size
    return found if cursor.matches and (cursor.position == ends).all() else None


class _Cursor:
    """Positions in many records, which all read the same fields.

    Attributes:
      position: [n] int64, one position in each record.
      matches: Whether every record had what was expected so far; positions are meaningless once one had not.
    """

    def __init__(self, data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
        self._data, self._last = data, ends - 1
        self.position = starts
        self.matches = True

    def expect(self, text: bytes) -> None:
        """Skips bytes that every record has here."""
        for byte in text:
            self.matches &= bool((self._next() == byte).all())

    def enter(self, tag: bytes) -> npt.NDArray[np.int64]:
        """Skips a tag and the length that follows it; returns the length."""
        self.expect(tag)
        length, shift, more = np.zeros(len(self.position), np.int64), 0, np.ones(len(self.position), bool)
        while more.any() and shift < 35:
            byte = self._data[np.minimum(self.position, self._last)]
            length += np.where(more, (byte & 0x7F).astype(np.int64) << shift, 0)
            self.position = self.position + more
            more &= byte >= 0x80
            shift += 7
        self.matches &= not more.any()
        return length

    def _next(self) -> npt.NDArray[np.uint8]:
        byte = self._data[np.minimum(self.position, self._last)]
        self.position = self.position + 1
        return byte
