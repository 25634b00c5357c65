"""Reads embeddings from TFRecords of tf.train.Example, in batches of rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.exchange.batches import ROWS, Batch, at
from beam_jobs.exchange.columns import EMBEDDING
from searchforge.artifacts.records import iterate_tfrecords
from searchforge.errors import UsageError
from searchforge.protobuf import bytes_values, read_varint


class TFRecordEmbeddings:
    """A TFRecord file whose examples have the features `id` and `embedding`; see EmbeddingFile.

    Raises:
      UsageError: The file cannot be read or is damaged.
    """

    fingerprint = ""

    def __init__(self, path: Path, dim: int) -> None:
        self.name, self._path, self._dim = str(path), path, dim
        self.rows = sum(1 for _ in self._payloads())

    def batches(self) -> Iterator[Batch]:
        payloads = enumerate(self._payloads())
        while part := list(itertools.islice(payloads, ROWS)):
            rows = [self._row(number, payload) for number, payload in part]
            yield Batch(np.stack([vector for vector, _ in rows]), [fields for _, fields in rows])

    def _payloads(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                yield from iterate_tfrecords(file)
        except ValueError as error:
            raise UsageError(f"{self.name} is not TFRecords, or is damaged: {error}; copy or create it again") from None
        except OSError as error:
            raise UsageError(f"{self.name} cannot be read: {error.strerror}") from None

    def _row(self, number: int, payload: bytes) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        where = at(self.name, number)
        try:
            fields = _features(payload)
        except (ValueError, IndexError) as error:
            raise UsageError(
                f"{where}: {len(payload)} bytes are not a tf.train.Example with UTF-8 texts: {error}"
            ) from None
        vector = fields.pop(EMBEDDING, None)
        if not isinstance(vector, np.ndarray) or len(vector) != self._dim:
            found = f"{len(vector)} floats" if isinstance(vector, np.ndarray) else "no floats"
            raise UsageError(
                f"{where}: the feature {EMBEDDING!r} has {found}; expected {self._dim}, the dimension of the encoder"
            )
        return vector, {key: _value(value) for key, value in fields.items()}


def _value(values: Any) -> Any:
    items = values.tolist() if isinstance(values, np.ndarray) else values
    return items[0] if len(items) == 1 else items or None


_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
"""Fields of tf.train.Feature."""


def _features(example: bytes) -> dict[str, Any]:
    """Returns the values of each feature: a list of texts, [n] float32, or a list of integers.

    Raises:
      ValueError, IndexError: The bytes are not a tf.train.Example, or a text is not UTF-8.
    """
    found: dict[str, Any] = {}
    for features in bytes_values(example, 1):
        for entry in bytes_values(features, 1):
            (key,) = bytes_values(entry, 1)
            for feature in bytes_values(entry, 2):
                for values in bytes_values(feature, _BYTES):
                    found[key.decode()] = [text.decode() for text in bytes_values(values, 1)]
                for values in bytes_values(feature, _FLOATS):
                    found[key.decode()] = _floats(values)
                for values in bytes_values(feature, _INTEGERS):
                    found[key.decode()] = _integers(values)
    return found


def _floats(values: bytes) -> npt.NDArray[np.float32]:
    packed = b"".join(bytes_values(values, 1))
    if packed or not values:
        return np.frombuffer(packed, "<f4").astype(np.float32)
    unpacked = np.frombuffer(values, np.dtype([("tag", "u1"), ("value", "<f4")]))
    return unpacked["value"].astype(np.float32)


def _integers(values: bytes) -> list[int]:
    packed, tagged = b"".join(bytes_values(values, 1)), False
    if not packed:
        packed, tagged = values, True
    numbers, position = [], 0
    while position < len(packed):
        value, position = read_varint(packed, position + tagged)
        numbers.append(value - 2**64 if value >= 2**63 else value)
    return numbers
