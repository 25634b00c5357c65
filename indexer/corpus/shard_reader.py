"""Reads all records of an embedding shard into arrays: vectors, ids and the metadata for the device."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled
from indexer.corpus.metadata import ID_ROOM, SCRATCH_ROWS, UNHANDLED, device_metadata, write_device_metadata
from indexer.corpus.shard_file import ShardFile
from searchforge.artifacts.records import MAX_RECORD_BYTES, TFRECORD_FRAMING, TFRECORD_HEADER, EmbeddingRecord
from searchforge.errors import JobError, UsageError

NORM_TOLERANCE = 1e-3
"""Maximum deviation of an embedding's length from 1."""


@dataclass(frozen=True)
class ByteStrings:
    """Byte strings in one buffer.

    Attributes:
      data: [bytes] uint8.
      starts: [n] int64, start of each string in the buffer.
      ends: [n] int64, end of each string in the buffer.
    """

    data: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of_offsets(cls, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> ByteStrings:
        """Returns concatenated strings with offsets [n + 1]."""
        return cls(data, offsets[:-1], offsets[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> bytes:
        return self.data[self.starts[row] : self.ends[row]].tobytes()

    def take(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Returns the concatenated strings of some rows and their offsets [rows + 1]."""
        starts, ends = self.starts[rows], self.ends[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(ends - starts, out=offsets[1:])
        joined = np.empty(offsets[-1], np.uint8)
        _copy_ranges(self.data, starts, ends, joined)
        return joined, offsets


@dataclass(frozen=True)
class ShardRecords:
    """All records of one shard file, in the file's order.

    Attributes:
      vectors: [n, dim] float32, L2-normalized; zeros for a faulty embedding.
      order_keys: [n] uint64, hashes of ids that define an item order independent of the sharding; see `order_keys`.
      ids: Ids in UTF-8.
      uris: URIs in UTF-8.
      metadata: JSON that the device returns with a hit; empty for faulty metadata.
      faults: Reasons why records cannot be indexed, with the remedy, by row.
    """

    vectors: npt.NDArray[np.float32]
    order_keys: npt.NDArray[np.uint64]
    ids: ByteStrings
    uris: ByteStrings
    metadata: ByteStrings
    faults: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.order_keys)


def read_shard(file: ShardFile, dim: int) -> ShardRecords:
    """Reads all records of a shard file, whose hash is verified by the caller or the file; see `parse_shard`."""
    return parse_shard(file.read_bytes(), dim, str(file))


def parse_shard(data: bytes, dim: int, name: str) -> ShardRecords:
    """Reads all records of a shard; memory holds the shard and its vectors.

    Args:
      data: TFRecord file of tf.train.Example messages (searchforge.artifacts.records). The caller has compared its
        SHA-256 with the manifest, so the records' checksums are not verified again.
      dim: Dimension of the embeddings.
      name: Name of the shard, for errors.

    Raises:
      JobError: The file is truncated or contains anything but embedding records.
    """
    buffer = np.frombuffer(data, np.uint8)
    payloads = _payloads(buffer, name)
    fields, understood = _find_fields(buffer, payloads)
    if not understood.all():
        return parse_shard(_rewritten(data, payloads, name), dim, name)
    strings = {key: ByteStrings(buffer, fields[:, i, 0], fields[:, i, 1]) for i, key in enumerate(_FEATURES)}
    ids, texts = strings[b"id"], strings[b"metadata"]
    try:
        metadata, faults = _device_metadata(ids, texts)
    except UnicodeDecodeError:  # the rewrite reports the faulty record
        return parse_shard(_rewritten(data, payloads, name), dim, name)
    vectors, faulty = _vectors(ids, strings[b"embedding"], dim)
    return ShardRecords(vectors, order_keys(data, ids), ids, strings[b"uri"], metadata, {**faults, **faulty})


def order_keys(data: bytes, ids: ByteStrings) -> npt.NDArray[np.uint64]:
    """Returns the order key of each id: its 8-byte BLAKE2b digest (RFC 7693) as a big-endian integer."""
    ranges = zip(ids.starts.tolist(), ids.ends.tolist(), strict=True)
    digests = b"".join([blake2b(data[start:end], digest_size=8).digest() for start, end in ranges])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def _payloads(buffer: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.int64]:
    """Returns the start and end [n, 2] of each TFRecord's payload."""
    count = _walk_records(buffer, np.empty((0, 2), np.int64))
    if count < 0:
        raise JobError(f"{name}: damaged TFRecord at byte {-count - 1}; embed it again")
    payloads = np.empty((count, 2), np.int64)
    _walk_records(buffer, payloads)
    return payloads


def _rewritten(data: bytes, payloads: npt.NDArray[np.int64], name: str) -> bytes:
    """Returns the shard with every record reserialized in canonical form, without checksums."""
    written = []
    for row, (start, end) in enumerate(payloads.tolist()):
        try:
            payload = EmbeddingRecord.from_bytes(data[start:end]).to_bytes()
        except (JobError, ValueError, RecursionError) as error:
            raise JobError(f"record {row} of {name}: {error}; embed it again") from None
        written.append(struct.pack("<Q4x", len(payload)) + payload + bytes(4))
    return b"".join(written)


def _vectors(ids: ByteStrings, embeddings: ByteStrings, dim: int) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """Returns the vectors [n, dim] and their faults by row; faulty vectors are zeros."""
    dims = (embeddings.ends - embeddings.starts) // 4
    vectors = np.zeros((len(ids), dim), np.float32)
    matching = np.flatnonzero(dims == dim)
    _copy_rows(embeddings.data, embeddings.starts, matching, vectors.view(np.uint8))
    lengths = np.sqrt(_squared_norms(vectors))
    faults: dict[int, str] = {}
    for row in np.flatnonzero(~(np.abs(lengths - 1) <= NORM_TOLERANCE)).tolist():
        id, length = ids[row].decode(), lengths[row]
        if dims[row] != dim:
            faults[row] = (
                f"embedding of {id!r} has {dims[row]} dimensions, but the manifest says {dim}; embed the "
                "corpus again with one encoder"
            )
            continue
        fault = (
            "contains NaN or infinity"
            if not np.isfinite(length)
            else "is all zeros"
            if length == 0
            else f"has length {length:g}, expected 1 (tolerance {NORM_TOLERANCE})"
        )
        faults[row] = f"embedding of {id!r} {fault}; its encoder is faulty: train it again, then embed the corpus again"
        vectors[row] = 0
    return vectors, faults


def _device_metadata(ids: ByteStrings, texts: ByteStrings) -> tuple[ByteStrings, dict[int, str]]:
    """Returns the metadata JSON for the device, and its faults by row.

    Raises:
      UnicodeDecodeError: An id or metadata is not UTF-8.
    """
    room = int((ids.ends - ids.starts).sum() + (texts.ends - texts.starts).sum()) + ID_ROOM * len(ids)
    written = np.empty(room, np.uint8)
    ends = _write_all_metadata(ids.data, ids.starts, ids.ends, texts.starts, texts.ends, written)
    bounds = np.maximum.accumulate(np.concatenate([[0], ends]))
    starts, handled = bounds[:-1], written[: bounds[-1]]
    str(handled.data, "utf-8")  # strings are delimited by ASCII, so each is valid UTF-8 if the whole is
    unhandled = np.flatnonzero(ends == UNHANDLED)
    if not len(unhandled):
        return ByteStrings(handled, starts, ends), {}
    faults: dict[int, str] = {}
    others: list[bytes] = []
    at = len(handled)
    for row in unhandled.tolist():
        id, other = ids[row].decode(), b""
        try:
            other = device_metadata(id, json.loads(texts[row].decode()))
        except UsageError as error:
            faults[row] = str(error)
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            faults[row] = f"metadata of {id!r} is not JSON ({error}); correct the value"
        others.append(other)
        starts[row], at = at, at + len(other)
        ends[row] = at
    return ByteStrings(np.concatenate([handled, np.frombuffer(b"".join(others), np.uint8)]), starts, ends), faults


_FEATURES = (b"id", b"embedding", b"metadata", b"uri", b"content_hash")
"""Features that every record must have."""
_KEY_LENGTHS = np.array([len(key) for key in _FEATURES])
_KEY_BYTES = np.frombuffer(b"".join(key.ljust(16) for key in _FEATURES), np.uint8).reshape(len(_FEATURES), 16)
_ALL_FOUND = 2 ** len(_FEATURES) - 1

_MESSAGE, _VALUE, _FLOAT_LIST = 0x0A, 0x12, 0x12
"""Protobuf tags: of an Example's features, a map entry, its key and a list of bytes; of its value; of a float list."""


@compiled
def _walk_records(buffer: npt.NDArray[np.uint8], payloads: npt.NDArray[np.int64]) -> int:
    """Writes the ranges of as many payloads as fit into `payloads`.

    Returns:
      Number of records; if negative, -1 - the position of the first damaged record.
    """
    position, count = np.int64(0), 0
    while position < len(buffer):
        if len(buffer) - position < TFRECORD_FRAMING:
            return -1 - int(position)
        length = np.uint64(0)
        for i in range(8):
            length |= np.uint64(buffer[position + i]) << np.uint64(8 * i)
        if length > np.uint64(MAX_RECORD_BYTES) or np.int64(length) > len(buffer) - position - TFRECORD_FRAMING:
            return -1 - int(position)
        if count < len(payloads):
            payloads[count, 0] = position + TFRECORD_HEADER
            payloads[count, 1] = position + TFRECORD_HEADER + np.int64(length)
        position += TFRECORD_FRAMING + np.int64(length)
        count += 1
    return count


@compiled
def _find_fields(
    buffer: npt.NDArray[np.uint8], payloads: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Returns the range [n, keys, 2] of each feature's only value, and whether each record was understood.

    Reads the same messages as searchforge.artifacts.records.record_fields, but only the values used here.
    """
    fields = np.zeros((len(payloads), len(_KEY_LENGTHS), 2), np.int64)
    understood = np.zeros(len(payloads), np.bool_)
    for row in range(len(payloads)):
        start, end = payloads[row]
        position, features_end = _enclosed(buffer, start, end, _MESSAGE, _MESSAGE)
        if features_end != end:
            continue
        found = 0
        while position < end:
            position, entry_end = _enclosed(buffer, position, end, _MESSAGE, _MESSAGE)
            if entry_end < 0:
                break
            key_start, key_end = _enclosed(buffer, position, entry_end, _MESSAGE, _MESSAGE)
            if key_end < 0:
                break
            position, value_end = _enclosed(buffer, key_end, entry_end, _VALUE, _VALUE)
            if value_end != entry_end:
                break
            position, value_end = _enclosed(buffer, position, entry_end, _MESSAGE, _FLOAT_LIST)
            if value_end != entry_end:
                break
            position, value_end = _enclosed(buffer, position, entry_end, _MESSAGE, _MESSAGE)
            if value_end != entry_end:
                break
            for key in range(len(_KEY_LENGTHS)):
                if _equals(buffer, key_start, key_end, key):
                    fields[row, key, 0], fields[row, key, 1] = position, value_end
                    found |= 1 << key
            position = entry_end
        whole_floats = (fields[row, 1, 1] - fields[row, 1, 0]) % 4 == 0
        understood[row] = position == end and found == _ALL_FOUND and whole_floats
    return fields, understood


@compiled
def _enclosed(buffer: npt.NDArray[np.uint8], position: int, limit: int, tag: int, other: int) -> tuple[int, int]:
    """Returns the range of a length-delimited value with one of the two tags, or -1, -1."""
    if position >= limit or (buffer[position] != tag and buffer[position] != other):
        return -1, -1
    length, shift, more = np.int64(0), 0, True
    while more:
        position += 1
        if position >= limit or shift > 28:
            return -1, -1
        length |= np.int64(buffer[position] & 0x7F) << shift
        shift += 7
        more = buffer[position] >= 0x80
    position += 1
    return (position, position + int(length)) if length <= limit - position else (-1, -1)


@compiled
def _equals(buffer: npt.NDArray[np.uint8], start: int, end: int, key: int) -> bool:
    if end - start != _KEY_LENGTHS[key]:
        return False
    for i in range(end - start):  # noqa: SIM110 (numba compiles no generator)
        if buffer[start + i] != _KEY_BYTES[key, i]:
            return False
    return True


@compiled
def _write_all_metadata(
    text: npt.NDArray[np.uint8],
    id_starts: npt.NDArray[np.int64],
    id_ends: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    out: npt.NDArray[np.uint8],
) -> npt.NDArray[np.int64]:
    """Returns the end of each item's JSON in `out`, or UNHANDLED."""
    keys = np.empty((SCRATCH_ROWS, 2), np.int64)
    written = np.empty(len(starts), np.int64)
    at = 0
    for row in range(len(starts)):
        written[row] = write_device_metadata(text, starts[row], ends[row], id_starts[row], id_ends[row], out, at, keys)
        if written[row] >= 0:
            at = written[row]
    return written


@compiled
def _copy_rows(
    buffer: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    out: npt.NDArray[np.uint8],
) -> None:
    for row in rows:
        start = starts[row]
        out[row] = buffer[start : start + out.shape[1]]


@compiled
def _copy_ranges(
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    out: npt.NDArray[np.uint8],
) -> None:
    at = 0
    for row in range(len(starts)):
        size = ends[row] - starts[row]
        out[at : at + size] = data[starts[row] : ends[row]]
        at += size


@compiled
def _squared_norms(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Returns squared norms [n] float64, in which the squares of finite float32 numbers are finite."""
    norms = np.zeros(len(vectors), np.float64)
    for row in range(len(vectors)):
        total = np.float64(0)
        for value in vectors[row]:
            total += np.float64(value) * np.float64(value)
        norms[row] = total
    return norms
