"""Reads an on-device index from its LevelDB table, and rejects one that a device could not search correctly.

Format: tensorflow_lite_support/scann_ondevice/cc/index_builder.cc. Unlike the Task Library, this reader verifies every
checksum, offset and length. It is independent of the indexer, so that it does not repeat a fault of the writer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.protobuf import read_varint
from serving_check.formats.leveldb_reader import read_table
from serving_check.formats.scann_schema import scann_on_device_config

_CONFIG, _USER_INFO = b"INDEX_CONFIG", b"USER_INFO"
_UINT8 = 2
_DOT_PRODUCT = 1
_LUT_TYPES = {0: "float", 1: "int16", 2: "int8"}


@dataclass(frozen=True)
class Index:
    """An index.

    Attributes:
      centroids: [partitions, dim] float32.
      codebooks: [entries, dimensions of the block] float32 for each block of dimensions.
      codes: [items, blocks] uint8, ordered by partition.
      partition_sizes: [partitions] int64.
      search_fraction: Fraction of the partitions that is searched, rounded to float32 as on the device.
      lut_type: Type of the device's look-up tables.
      metadata: Metadata of each item.
      user_info: The indexer's USER_INFO.
      sizes: Bytes of `codes`, `centroids_and_codebooks` and `metadata` before compression.
    """

    centroids: npt.NDArray[np.float32]
    codebooks: tuple[npt.NDArray[np.float32], ...]
    codes: npt.NDArray[np.uint8]
    partition_sizes: npt.NDArray[np.int64]
    search_fraction: float
    lut_type: str
    metadata: list[bytes]
    user_info: bytes
    sizes: dict[str, int]

    @property
    def partitions_searched(self) -> int:
        """Number of partitions that a device searches: it multiplies in float32 and rounds up."""
        return math.ceil(float(np.float32(len(self.centroids)) * np.float32(self.search_fraction)))

    def decode(self, items: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Returns the vectors [items, dim] float32 that the codes of some items represent."""
        codes = self.codes[items]
        return np.concatenate([book[codes[:, block]] for block, book in enumerate(self.codebooks)], axis=1)


def read_index(table: bytes) -> Index:
    """Reads an index from its LevelDB table.

    Raises:
      ValueError: The table is damaged or inconsistent; the message says where.
    """
    values = dict(read_table(table))
    config = values.pop(_CONFIG, None)
    user_info = values.pop(_USER_INFO, b"")
    if config is None:
        raise ValueError("INDEX_CONFIG is missing")
    scann, code_bytes, offsets = _config(config)
    centroids, codebooks = _centroids(scann), _codebooks(scann)
    _require_settings(scann, code_bytes, centroids, codebooks)
    codes = [_pop(values, b"E_%d" % partition) for partition in range(len(centroids))]
    sizes = _partition_sizes(codes, code_bytes, offsets)
    items = int(sizes.sum())
    metadata = [_pop(values, b"M_%d" % item) for item in range(items)]
    if values:
        raise ValueError(
            f"{len(values)} keys belong neither to a partition nor to an item, for example {min(values)!r}"
        )
    index = Index(
        centroids,
        codebooks,
        np.frombuffer(b"".join(codes), np.uint8).reshape(items, code_bytes),
        sizes,
        float(np.float32(scann.partitioner.search_fraction)),
        _LUT_TYPES[scann.indexer.asymmetric_hashing.lookup_type],
        metadata,
        user_info,
        {
            "codes": items * code_bytes,
            "centroids_and_codebooks": len(config),
            "metadata": sum(map(len, metadata)),
        },
    )
    for block, book in enumerate(codebooks):
        if items and (last := int(index.codes[:, block].max())) >= len(book):
            raise ValueError(f"block {block} has codes up to {last}, but its codebook has {len(book)} entries")
    return index


def _config(data: bytes) -> tuple[Any, int, list[int]]:
    """Returns the ScannOnDeviceConfig, bytes per code and partition offsets of an IndexConfig message."""
    from google.protobuf.message import DecodeError

    scann, kind, code_bytes, offsets, position = None, 0, 0, b"", 0
    try:
        while position < len(data):
            tag, position = read_varint(data, position)
            value, position = read_varint(data, position)
            if tag & 7 == 2:
                field, position = data[position : position + value], position + value
                if tag >> 3 == 1:
                    scann = scann_on_device_config().FromString(field)
                elif tag >> 3 == 4:
                    offsets = field
            elif tag >> 3 == 2:
                kind = value
            elif tag >> 3 == 3:
                code_bytes = value
    except (DecodeError, IndexError) as error:
        raise ValueError(f"INDEX_CONFIG is damaged: {error}") from None
    if scann is None or not scann.HasField("partitioner") or not scann.indexer.HasField("asymmetric_hashing"):
        raise ValueError("INDEX_CONFIG has no partitioner or no codebooks")
    if kind != _UINT8:
        raise ValueError(f"the embedding_type of INDEX_CONFIG is {kind}, expected {_UINT8} (uint8)")
    numbers, position = [], 0
    while position < len(offsets):
        number, position = read_varint(offsets, position)
        numbers.append(number)
    return scann, code_bytes, numbers


def _centroids(scann: Any) -> npt.NDArray[np.float32]:
    leaves = [np.array(leaf.dimension, np.float32) for leaf in scann.partitioner.leaf]
    if not leaves or len({len(leaf) for leaf in leaves}) != 1:
        raise ValueError(
            f"{len(leaves)} centroids of dimensions {sorted({len(leaf) for leaf in leaves})}, expected equal ones"
        )
    return np.stack(leaves)


def _codebooks(scann: Any) -> tuple[npt.NDArray[np.float32], ...]:
    books = []
    for block, subspace in enumerate(scann.indexer.asymmetric_hashing.subspace):
        entries = [np.array(entry.dimension, np.float32) for entry in subspace.entry]
        if not entries or len({len(entry) for entry in entries}) != 1:
            raise ValueError(
                f"the codebook of block {block} has {len(entries)} entries, expected entries of equal length"
            )
        books.append(np.stack(entries))
    return tuple(books)


def _require_settings(
    scann: Any,
    code_bytes: int,
    centroids: npt.NDArray[np.float32],
    codebooks: tuple[npt.NDArray[np.float32], ...],
) -> None:
    hashing = scann.indexer.asymmetric_hashing
    for stage, distance in (
        ("the search", scann.query_distance),
        ("the partitions", scann.partitioner.query_distance),
        ("the codes", hashing.query_distance),
    ):
        if distance != _DOT_PRODUCT:
            raise ValueError(f"the distance of {stage} is {distance}, expected {_DOT_PRODUCT}, the dot product")
    if hashing.lookup_type not in _LUT_TYPES:
        raise ValueError(f"the look-up type is {hashing.lookup_type}, expected one of {_LUT_TYPES}")
    if code_bytes != len(codebooks):
        raise ValueError(f"INDEX_CONFIG has {code_bytes} bytes per code, but {len(codebooks)} codebooks")
    dim = sum(book.shape[1] for book in codebooks)
    if centroids.shape[1] != dim:
        raise ValueError(f"the centroids have {centroids.shape[1]} dimensions, but the codebooks have {dim}")
    fraction = scann.partitioner.search_fraction
    if not 0 < fraction <= 1:
        raise ValueError(f"search_fraction is {fraction}, expected more than 0 and at most 1")
    for name, matrix in (
        ("the matrix of centroids", centroids),
        *((f"codebook {i}", book) for i, book in enumerate(codebooks)),
    ):
        if not np.isfinite(matrix).all():
            raise ValueError(f"{name} contains NaN or infinity")
    if len(centroids) > 1 and not centroids.any(axis=1).all():
        raise ValueError(f"centroid {int(np.argmin(centroids.any(axis=1)))} is zero")
    if len(codebooks) and not any(book.any() for book in codebooks):
        raise ValueError("all codebooks are zero")


def _partition_sizes(codes: list[bytes], code_bytes: int, offsets: list[int]) -> npt.NDArray[np.int64]:
    for partition, data in enumerate(codes):
        if len(data) % code_bytes:
            raise ValueError(
                f"partition {partition} has {len(data)} bytes, not a multiple of {code_bytes} bytes per code"
            )
    sizes = np.array([len(data) // code_bytes for data in codes], np.int64)
    expected = (np.cumsum(sizes) - sizes).tolist()
    if offsets != expected:
        raise ValueError(
            f"the partition offsets are {offsets[:4]}... ({len(offsets)}), but the codes imply "
            f"{expected[:4]}... ({len(expected)})"
        )
    return sizes


def _pop(values: dict[bytes, bytes], key: bytes) -> bytes:
    try:
        return values.pop(key)
    except KeyError:
        raise ValueError(f"key {key.decode()} is missing") from None


def require_parameters(index: Index, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError if an index differs from the parameters of its build."""
    for name, found in (
        ("code_bytes", index.codes.shape[1]),
        ("partitions", len(index.centroids)),
        ("partitions_searched", index.partitions_searched),
        ("lut_type", index.lut_type),
    ):
        if name in parameters and found != parameters[name]:
            raise ValueError(f"{name} is {found}, but {parameters[name]} in build.json")
