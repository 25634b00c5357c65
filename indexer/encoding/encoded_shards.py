"""Parts: shards as a quantizer encodes them, each on its own, and their merge into one index in device order.

A part is a function of the shard's bytes and the quantizer, so an index of a changed corpus encodes only the shards
that changed. It is one safetensors file, written whole or not at all, and holds all records of the shard file: which of
them are dead depends on the manifest and is the merge's concern.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numba
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from indexer.corpus.shard_reader import ByteStrings, parse_shard
from indexer.corpus.shards import Shard, map_in_order, require_distinct_ids, require_sound
from searchforge import progress
from searchforge.artifacts.manifest import ShardInfo
from searchforge.errors import JobError, UsageError
from searchforge.storage.local import LocalStorage

FORMAT_VERSION = 1
"""Of part files."""

CHUNK = 16_384
"""Vectors that are encoded at once."""

_HEADER = "part"


class Quantizer(Protocol):
    """What encoding needs.

    Attributes:
      transform: [dim, dim] float32; a vector x is indexed as transform @ x.
      centroids: [partitions, dim] float32, of mapped vectors.
      codebooks: for each block of mapped dimensions, in their order, [256, dimensions of the block] float32.
    """

    @property
    def transform(self) -> npt.NDArray[np.float32]: ...
    @property
    def centroids(self) -> npt.NDArray[np.float32]: ...
    @property
    def codebooks(self) -> Sequence[npt.NDArray[np.float32]]: ...

    def encode(self, vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Returns the partitions [n] and codes [n, blocks] of [n, dim] vectors, each by itself: not of its batch."""


@dataclass(frozen=True)
class Merged:
    """An encoded corpus in device order: by partition, then order key, then id.

    Attributes:
      codes: [n, blocks] uint8.
      partition_sizes: [partitions] int64.
      metadata_blob: [bytes] uint8, mapped from a file: what the device returns with a hit, in the shards' order.
      metadata_offsets: [n + 1] int64, into the blob.
      order: [n] int64; item i's metadata is number order[i] of the blob.
      squared_error: mean over the items of |mapped vector - what its code stands for|^2.
    """

    codes: npt.NDArray[np.uint8]
    partition_sizes: npt.NDArray[np.int64]
    metadata_blob: npt.NDArray[np.uint8]
    metadata_offsets: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    squared_error: float

    @property
    def metadata_bytes(self) -> int:
        """Size of all items' metadata together."""
        return int((self.metadata_offsets[self.order + 1] - self.metadata_offsets[self.order]).sum())

    def metadata(self, item: int) -> bytes:
        """Returns the JSON of an item."""
        return ByteStrings.of_offsets(self.metadata_blob, self.metadata_offsets)[int(self.order[item])]


def part_name(info: ShardInfo) -> str:
    """Returns the file name of a shard's part."""
    return f"{info.sha256}.v{FORMAT_VERSION}.safetensors"


def encode_shards(shards: Sequence[Shard], quantizer: Quantizer, folder: Path, threads: int) -> None:
    """Writes the part of every shard into `folder`, unless it is there.

    Args:
      folder: of the quantizer; another one's parts have the same names.

    Raises:
      JobError: a shard is damaged.
    """
    missing = [(info, path) for info, path in shards if not (folder / part_name(info)).exists()]
    with progress.track("encode", sum(info.count for info, _ in missing)) as advance:

        def encode(shard: Shard) -> int:
            info, path = shard
            encode_shard(path, quantizer, folder / part_name(info))
            return info.count

        for count in map_in_order(encode, missing, threads):
            advance(count)


def encode_shard(path: Path, quantizer: Quantizer, part: Path) -> None:
    """Writes the part of one shard file, whose bytes are known to be right.

    Raises:
      JobError: the shard is damaged.
    """
    LocalStorage(str(part.parent)).write(part.name, encoded(path.read_bytes(), quantizer, str(path)))


def encoded(data: bytes, quantizer: Quantizer, name: str, chunk: int = CHUNK) -> bytes:
    """Returns the part of a shard as the bytes of a file.

    Tensors: order_keys [n] uint64, assignments [n] uint32, codes [n, blocks] uint8, errors [n] float32 (squared
    distances between mapped vectors and what their codes stand for), metadata [bytes] uint8 with offsets [n + 1] int64.

    Args:
      data: of the shard.
      name: of the shard, for errors.
      chunk: vectors that are encoded at once.

    Raises:
      JobError: the shard is damaged.
    """
    records = parse_shard(data, quantizer.transform.shape[1], name)
    count = len(records)
    assignments = np.empty(count, np.uint32)
    codes = np.empty((count, len(quantizer.codebooks)), np.uint8)
    errors = np.empty(count, np.float32)
    entries = np.concatenate(quantizer.codebooks, axis=1)
    blocks = np.repeat(np.arange(len(quantizer.codebooks)), [book.shape[1] for book in quantizer.codebooks])
    for start in range(0, count, chunk):
        rows = slice(start, start + chunk)
        vectors = records.vectors[rows]
        assignments[rows], codes[rows] = quantizer.encode(vectors)
        _squared_errors(vectors @ quantizer.transform.T, codes[rows], entries, blocks, errors[rows])
    metadata, offsets = records.metadata.take(np.arange(count))
    tensors = {
        "order_keys": records.order_keys,
        "assignments": assignments,
        "codes": codes,
        "errors": errors,
        "metadata": metadata,
        "offsets": offsets,
    }
    header = {"faults": sorted(records.faults.items())}
    written: bytes = save(tensors, {_HEADER: json.dumps(header)})
    return written


def merge(shards: Sequence[Shard], quantizer: Quantizer, folder: Path, metadata_file: Path) -> Merged:
    """Joins the live records of all parts, in an order that does not depend on how the corpus is sharded.

    In memory: the codes, and about 40 bytes an item.

    Args:
      folder: of the quantizer's parts.
      metadata_file: written; holds the metadata that the result maps.

    Raises:
      UsageError: a live record must not be indexed, an id is there twice, or there are no live records.
      JobError: a part is missing or damaged.
    """
    count = sum(info.live for info, _ in shards)
    if not count:
        raise UsageError("the corpus has no records; there is nothing to index")
    keys, assignments = np.empty(count, np.uint64), np.empty(count, np.uint32)
    offsets = np.zeros(count + 1, np.int64)
    squared_error = 0.0
    end = 0
    with metadata_file.open("wb") as file:
        for info, shard in shards:
            part = _Part(folder / part_name(info), info)
            require_sound(part.faults, info.count, info.dead, shard.name)
            start, end = end, end + info.live
            keys[start:end] = part.live("order_keys")
            assignments[start:end] = part.live("assignments")
            squared_error += float(part.live("errors").sum(dtype=np.float64))
            blob, blob_offsets = part.metadata()
            offsets[start + 1 : end + 1] = offsets[start] + blob_offsets[1:]
            file.write(blob.data)
    metadata_blob = np.memmap(metadata_file, np.uint8, "r")
    order = _device_order(shards, quantizer, folder, keys, assignments, ByteStrings.of_offsets(metadata_blob, offsets))
    del keys
    partition_sizes = np.bincount(assignments, minlength=len(quantizer.centroids))
    del assignments
    place = np.empty_like(order)
    place[order] = np.arange(count)
    codes = np.empty((count, len(quantizer.codebooks)), np.uint8)
    end = 0
    for info, _ in shards:
        start, end = end, end + info.live
        codes[place[start:end]] = _Part(folder / part_name(info), info).live("codes")
    return Merged(codes, partition_sizes, metadata_blob, offsets, order, squared_error / count)


def _device_order(
    shards: Sequence[Shard],
    quantizer: Quantizer,
    folder: Path,
    keys: npt.NDArray[np.uint64],
    assignments: npt.NDArray[np.uint32],
    metadata: ByteStrings,
) -> npt.NDArray[np.int64]:
    """Returns the rows of all live records, sorted by partition, order key and id."""
    all_keys = (_Part(folder / part_name(info), info).all("order_keys") for info, _ in shards)
    shared = require_distinct_ids(all_keys, shards, quantizer.transform.shape[1])
    if not len(shared):
        return np.lexsort((keys, assignments))
    rows = np.flatnonzero(np.isin(keys, shared)).tolist()
    ranks = np.zeros(len(keys), np.uint32)
    ranks[sorted(rows, key=lambda row: json.loads(metadata[row])["id"])] = np.arange(len(rows))
    return np.lexsort((ranks, keys, assignments))


class _Part:
    """Reads a part file."""

    def __init__(self, path: Path, info: ShardInfo) -> None:
        self._path, self._info = path, info

    @property
    def faults(self) -> dict[int, str]:
        """By row, why a record must not be indexed."""
        return dict(json.loads(self._read(None))["faults"])

    def all(self, name: str) -> npt.NDArray[Any]:
        """Returns a tensor of all records."""
        tensor: npt.NDArray[Any] = self._read(name)
        return tensor

    def live(self, name: str) -> npt.NDArray[Any]:
        """Returns a tensor's rows of live records."""
        tensor = self.all(name)
        if len(tensor) != self._info.count:
            raise JobError(f"{self._path} holds {len(tensor)} records, expected {self._info.count}; delete it")
        return np.delete(tensor, self._info.dead, axis=0) if self._info.dead else tensor

    def metadata(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Returns the metadata of live records, one behind the other, and their offsets."""
        blob, offsets = self.all("metadata"), self.all("offsets")
        if not self._info.dead:
            return blob, offsets
        return ByteStrings.of_offsets(blob, offsets).take(np.delete(np.arange(self._info.count), self._info.dead))

    def _read(self, tensor: str | None) -> Any:
        try:
            with safe_open(str(self._path), framework="numpy") as file:
                return file.get_tensor(tensor) if tensor else file.metadata()[_HEADER]
        except (SafetensorError, OSError) as error:
            raise JobError(f"part {self._path} cannot be read: {error}; delete it and run the command again") from None


@numba.njit(cache=True, nogil=True)
def _squared_errors(
    mapped: npt.NDArray[np.float32],
    codes: npt.NDArray[np.uint8],
    entries: npt.NDArray[np.float32],
    blocks: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
) -> None:
    """Writes |mapped vector - its entries|^2 of each row; entries: [256, dim]; blocks: [dim], a dimension's block."""
    for row in range(len(mapped)):
        total = np.float32(0)
        for dim in range(mapped.shape[1]):
            difference = mapped[row, dim] - entries[codes[row, blocks[dim]], dim]
            total += difference * difference
        out[row] = total
