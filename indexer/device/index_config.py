"""Serializes INDEX_CONFIG, the protobuf message IndexConfig of the on-device index, with NumPy.

Format: tensorflow_lite_support/scann_ondevice/proto/index_config.proto and cc/core/serialized_searcher.proto, in
protobuf's wire format (https://protobuf.dev/programming-guides/encoding), fields in the order of their numbers.
tflite-support's generated classes run in pure Python (searchforge.processes.isolated), a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.records import varint
from searchforge.config import LutType

_DOT_PRODUCT = 1
_LOOKUP_TYPES: dict[LutType, int] = {"float": 0, "int16": 1, "int8": 2}
_UINT8 = 2
_VARINT, _LENGTH_DELIMITED, _FIXED32 = 0, 2, 5
"""Wire types."""


def index_config(
    centroids: npt.NDArray[np.float32],
    codebooks: Sequence[npt.NDArray[np.float32]],
    lut_type: LutType,
    search_fraction: float,
    partition_sizes: npt.NDArray[np.int64],
) -> bytes:
    """Returns the same bytes as protobuf's serializer.

    Args:
      centroids: [partitions, dim] float32.
      codebooks: [256, dimensions of the block] float32 for each block of dimensions.
      lut_type: Element type of the device's look-up tables.
      search_fraction: Fraction of the partitions that a query searches; float32 on the device.
      partition_sizes: [partitions] int64, number of items in each partition.

    Raises:
      ValueError: The shapes disagree.
    """
    dim = sum(book.shape[1] for book in codebooks)
    if centroids.shape != (len(partition_sizes), dim):
        raise ValueError(
            f"centroids are {list(centroids.shape)}, expected [{len(partition_sizes)}, {dim}] to match the "
            "partition sizes and the codebooks"
        )
    partitioner = (
        _repeated_rows(centroids)
        + _tag(2, _FIXED32)
        + np.array(search_fraction, "<f4").tobytes()
        + _integer(3, _DOT_PRODUCT)
    )
    hashing = (
        b"".join(_field(1, _repeated_rows(book)) for book in codebooks)
        + _integer(2, _DOT_PRODUCT)
        + _integer(3, _LOOKUP_TYPES[lut_type])
    )
    scann_config = _integer(1, _DOT_PRODUCT) + _field(2, _field(1, hashing)) + _field(3, partitioner)
    offsets = np.cumsum(partition_sizes) - partition_sizes
    return (
        _field(1, scann_config)
        + _integer(2, _UINT8)
        + _integer(3, len(codebooks))  # the format's "embedding_dim": bytes per code
        + _field(4, b"".join(map(varint, offsets.tolist())))
    )


def _repeated_rows(rows: npt.NDArray[np.float32]) -> bytes:
    """Returns repeated field 1: for each row of [n, d], a message whose field 1 is the packed row."""
    values = np.ascontiguousarray(rows, "<f4").view(np.uint8)
    header = _tag(1, _LENGTH_DELIMITED) + varint(values.shape[1])
    header = _tag(1, _LENGTH_DELIMITED) + varint(len(header) + values.shape[1]) + header
    written = np.empty((len(values), len(header) + values.shape[1]), np.uint8)
    written[:, : len(header)] = np.frombuffer(header, np.uint8)
    written[:, len(header) :] = values
    return written.tobytes()


def _tag(number: int, wire_type: int) -> bytes:
    return bytes([number << 3 | wire_type])


def _integer(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + varint(value)


def _field(number: int, value: bytes) -> bytes:
    return _tag(number, _LENGTH_DELIMITED) + varint(len(value)) + value
