"""Embedding records: tf.train.Example messages in TFRecord files, read and written without TensorFlow.

Formats: tensorflow/core/example/example.proto, and the TFRecord framing of
https://www.tensorflow.org/tutorials/load_data/tfrecord (length, its masked CRC-32C, data, its masked CRC-32C).

Embedding records are parsed by `record_fields`, which takes half the time of the general walker in searchforge.protobuf
because it assumes the order of fields that every protobuf library writes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt

from searchforge.errors import JobError
from searchforge.protobuf import bytes_field, bytes_values, read_varint

MAX_RECORD_BYTES = 2**30
"""Limit that keeps a damaged or hostile length from reserving memory."""

TFRECORD_HEADER = 12
TFRECORD_FRAMING = 16
"""Bytes before a TFRecord's payload (length and checksum), and bytes before and after it in total."""


@dataclass(frozen=True)
class EmbeddingRecord:
    """One embedded item.

    Attributes:
      id: Id of the item, unique within its corpus.
      embedding: [d] float32, L2-normalised.
      uri: Path or URI of the source file.
      content_hash: SHA-256 of the item's bytes, hexadecimal.
      metadata: JSON object stored with the item in the on-device index.
      version: Version of the source file, by which incremental runs detect changes; "" if unknown.
      byte_range: `offset+size@file` for an archive member; "" if the item is all of `uri`. Feature `place` in the file.
    """

    id: str
    embedding: npt.NDArray[np.float32]
    uri: str
    content_hash: str
    metadata: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    byte_range: str = ""

    def __post_init__(self) -> None:
        if self.embedding.ndim != 1 or self.embedding.dtype != np.float32:
            raise ValueError(
                f"embedding of {self.id!r} is {self.embedding.dtype}{list(self.embedding.shape)}; "
                "expected a float32 vector"
            )

    def to_bytes(self) -> bytes:
        """Returns the serialized tf.train.Example; equal records give equal bytes."""
        metadata = _to_json(self.metadata)
        features = {  # in lexicographic order, as in a deterministic serialization
            "content_hash": bytes_field(_BYTES_LIST, bytes_field(1, self.content_hash.encode())),
            "embedding": bytes_field(_FLOAT_LIST, bytes_field(1, self.embedding.astype("<f4").tobytes())),
            "id": bytes_field(_BYTES_LIST, bytes_field(1, self.id.encode())),
            "metadata": bytes_field(_BYTES_LIST, bytes_field(1, metadata.encode())),
            "place": bytes_field(_BYTES_LIST, bytes_field(1, self.byte_range.encode())),
            "uri": bytes_field(_BYTES_LIST, bytes_field(1, self.uri.encode())),
            "version": bytes_field(_BYTES_LIST, bytes_field(1, self.version.encode())),
        }
        entries = (
            bytes_field(1, bytes_field(1, key.encode()) + bytes_field(2, value)) for key, value in features.items()
        )
        return bytes_field(1, b"".join(entries))

    @classmethod
    def from_bytes(cls, data: bytes) -> EmbeddingRecord:
        """Parses a serialized tf.train.Example.

        Raises:
          JobError: The bytes are not an embedding record.
        """
        try:
            features = record_fields(data)
            return cls(
                id=features[b"id"].decode(),
                embedding=np.frombuffer(features[b"embedding"], "<f4").astype(np.float32),
                uri=features[b"uri"].decode(),
                content_hash=features[b"content_hash"].decode(),
                metadata=json.loads(features[b"metadata"].decode()),
                version=features.get(b"version", b"").decode(),
                byte_range=features.get(b"place", b"").decode(),
            )
        except (ValueError, KeyError, IndexError) as error:
            raise JobError(
                f"{len(data)} bytes are not an embedding record ({error!r}); "
                "expected a tf.train.Example with id, embedding, uri, content_hash and metadata"
            ) from error


def write_tfrecords(file: BinaryIO, payloads: Iterable[bytes]) -> None:
    """Writes each payload as one TFRecord."""
    for payload in payloads:
        length = struct.pack("<Q", len(payload))
        file.write(length + _masked_crc(length) + payload + _masked_crc(payload))


def read_tfrecords(path: Path) -> Iterator[bytes]:
    """Yields the payload of each TFRecord of a file.

    Raises:
      JobError: The file is truncated or a checksum does not match.
    """
    with path.open("rb") as file:
        try:
            yield from iterate_tfrecords(file)
        except ValueError as error:
            raise JobError(f"{path}: {error}; embed it again") from None


def iterate_tfrecords(file: BinaryIO) -> Iterator[bytes]:
    """Yields the payload of each TFRecord.

    Raises:
      ValueError: The file is truncated or a checksum does not match.
    """
    position = 0
    while header := file.read(TFRECORD_HEADER):
        if len(header) < TFRECORD_HEADER or header[8:] != _masked_crc(header[:8]):
            raise ValueError(f"damaged TFRecord header at byte {position}")
        (length,) = struct.unpack("<Q", header[:8])
        if length > MAX_RECORD_BYTES:
            raise ValueError(f"TFRecord of {length} bytes at byte {position}, above the limit of {MAX_RECORD_BYTES}")
        payload, crc = file.read(length), file.read(4)
        if len(payload) < length or crc != _masked_crc(payload):
            raise ValueError(f"damaged TFRecord at byte {position}")
        yield payload
        position += TFRECORD_FRAMING + length


def example_bytes(data: bytes) -> dict[str, list[bytes]]:
    """Returns the bytes features of a serialized tf.train.Example by key, without its numeric features.

    Raises:
      ValueError: The bytes are not a tf.train.Example.
    """
    try:
        found: dict[str, list[bytes]] = {}
        for features in bytes_values(data, 1):
            for entry in bytes_values(features, 1):
                (key,) = bytes_values(entry, 1)
                lists = [values for feature in bytes_values(entry, 2) for values in bytes_values(feature, _BYTES_LIST)]
                if lists:
                    found[key.decode()] = list(bytes_values(lists[-1], 1))
        return found
    except (ValueError, IndexError) as error:
        raise ValueError(f"{len(data)} bytes are not a tf.train.Example: {error}") from None


def read_embeddings(path: Path) -> Iterator[EmbeddingRecord]:
    """Yields the embedding records of one shard; see `read_tfrecords` for errors."""
    return (EmbeddingRecord.from_bytes(payload) for payload in read_tfrecords(path))


def mask_crc(crc: int) -> int:
    """Masks a CRC-32C as TFRecords and LevelDB tables store it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _masked_crc(data: bytes) -> bytes:
    return struct.pack("<I", mask_crc(google_crc32c.value(data)))


_BYTES_LIST, _FLOAT_LIST = 1, 2
"""Fields of tf.train.Feature."""

_to_json = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


def record_fields(example: bytes) -> dict[bytes, bytes]:
    """Returns the value of every feature of a serialized embedding record as bytes.

    Raises:
      ValueError, IndexError: The bytes are not a tf.train.Example with one value per feature and ordered fields.
    """
    values: dict[bytes, bytes] = {}
    position, end = _enclosed(example, 0, _FEATURES, len(example))
    while position < end:
        position, entry_end = _enclosed(example, position, _FEATURES)
        start, position = _enclosed(example, position, _KEY)
        key = example[start:position]
        for tags in (_VALUE, _LISTS):
            position, _ = _enclosed(example, position, tags, entry_end)
        start, position = _enclosed(example, position, _KEY, entry_end)
        values[key] = example[start:position]
    return values


_FEATURES, _KEY, _VALUE, _LISTS = b"\x0a", b"\x0a", b"\x12", b"\x0a\x12"
"""Tags of an Example's features, of a map entry's key and value, and of the lists of bytes and floats."""


def _enclosed(message: bytes, position: int, tags: bytes, expected_end: int = -1) -> tuple[int, int]:
    """Returns start and end of the value of a length-delimited field with one of `tags`."""
    if message[position] not in tags:
        raise ValueError(f"unexpected tag {message[position]} at byte {position}")
    length, position = message[position + 1], position + 2
    if length > 0x7F:
        length, position = read_varint(message, position - 1)
    end = position + length
    if end > len(message) or end != expected_end >= 0:
        raise ValueError(f"{length} bytes at byte {position} are truncated or exceed their message")
    return position, end
