"""Serializes INDEX_CONFIG, the protobuf message IndexConfig of the on-device index, with NumPy.

Format: tensorflow_lite_support/scann_ondevice/proto/index_config.proto and cc/core/serialized_searcher.proto, in
protobuf's wire format (https://protobuf.dev/programming-guides/encoding), fields in the order of their numbers.
tflite-support's generated classes run in pure Python (searchforge.processes.isolated), a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from searchforge.config import LutType
from searchforge.protobuf import FIXED32, LENGTH_DELIMITED, bytes_field, integer_field, tag, varint

_DOT_PRODUCT = 1
_LOOKUP_TYPES: dict[LutType, int] = {"float": 0, "int16": 1, "int8": 2}
_UINT8 = 2


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
        + tag(2, FIXED32)
        + np.array(search_fraction, "<f4").tobytes()
        + integer_field(3, _DOT_PRODUCT)
    )
    hashing = (
        b"".join(bytes_field(1, _repeated_rows(book)) for book in codebooks)
        + integer_field(2, _DOT_PRODUCT)
        + integer_field(3, _LOOKUP_TYPES[lut_type])
    )
    scann_config = (
        integer_field(1, _DOT_PRODUCT) + bytes_field(2, bytes_field(1, hashing)) + bytes_field(3, partitioner)
    )
    offsets = np.cumsum(partition_sizes) - partition_sizes
    return (
        bytes_field(1, scann_config)
        + integer_field(2, _UINT8)
        + integer_field(3, len(codebooks))  # the format's "embedding_dim": bytes per code
        + bytes_field(4, b"".join(map(varint, offsets.tolist())))
    )


def _repeated_rows(rows: npt.NDArray[np.float32]) -> bytes:
    """Returns repeated field 1: for each row of [n, d], a message whose field 1 is the packed row."""
    values = np.ascontiguousarray(rows, "<f4").view(np.uint8)
    header = tag(1, LENGTH_DELIMITED) + varint(values.shape[1])
    header = tag(1, LENGTH_DELIMITED) + varint(len(header) + values.shape[1]) + header
    written = np.empty((len(values), len(header) + values.shape[1]), np.uint8)
    written[:, : len(header)] = np.frombuffer(header, np.uint8)
    written[:, len(header) :] = values
    return written.tobytes()
