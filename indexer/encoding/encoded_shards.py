"""Encodes shards with a quantizer and merges the encoded shards into one corpus in device order.

An encoded shard is a function of the shard's bytes and the quantizer, so only changed shards of a corpus are encoded
again. It is one safetensors file, written atomically, of all records in the shard file. Which of them are dead depends
on the manifest, so the merge drops those.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from indexer.compiled_code import compiled
from indexer.corpus.shard_file import ShardFile
from indexer.corpus.shard_reader import ByteStrings, parse_shard
from indexer.corpus.shards import Shard, map_in_order, require_unique_ids, require_valid_records
from searchforge import progress
from searchforge.artifacts.manifest import ShardInfo
from searchforge.errors import JobError, UsageError
from searchforge.storage.local import LocalStorage

FORMAT_VERSION = 1
"""Version of encoded shard files."""

CHUNK = 16_384
"""Number of vectors encoded at once."""

_HEADER = "part"


class QuantizerLike(Protocol):
    """Interface of a quantizer that encoding uses.

    Attributes:
      transform: [dim, dim] float32; a vector x is indexed as transform @ x.
      centroids: [partitions, dim] float32, in the mapped space.
      codebooks: [256, dimensions of the block] float32 for each block of mapped dimensions, in order.
    """

    @property
    def transform(self) -> npt.NDArray[np.float32]: ...
    @property
    def centroids(self) -> npt.NDArray[np.float32]: ...
    @property
    def codebooks(self) -> Sequence[npt.NDArray[np.float32]]: ...

    def encode(self, vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Returns the partitions [n] and codes [n, blocks] of vectors [n, dim], row by row.

        A row's result must not depend on its batch.
        """


@dataclass(frozen=True)
class EncodedCorpus:
    """An encoded corpus in device order: sorted by partition, then order key, then id.

    Attributes:
      codes: [n, blocks] uint8.
      partition_sizes: [partitions] int64.
      metadata_blob: [bytes] uint8, mapped from a file: metadata that the device returns with a hit, in shard order.
      metadata_offsets: [n + 1] int64, offsets into the blob.
      order: [n] int64; entry order[i] of the blob is item i's metadata.
      squared_error: Mean squared distance between mapped vectors and their reconstructions.
    """

    codes: npt.NDArray[np.uint8]
    partition_sizes: npt.NDArray[np.int64]
    metadata_blob: npt.NDArray[np.uint8]
    metadata_offsets: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    squared_error: float

    @property
    def metadata_bytes(self) -> int:
        """Total size of all items' metadata in bytes."""
        return int((self.metadata_offsets[self.order + 1] - self.metadata_offsets[self.order]).sum())

    def metadata(self, item: int) -> bytes:
        """Returns the metadata JSON of an item."""
        return ByteStrings.of_offsets(self.metadata_blob, self.metadata_offsets)[int(self.order[item])]


def encoded_shard_name(info: ShardInfo) -> str:
    """Returns the file name of an encoded shard."""
    return f"{info.sha256}.v{FORMAT_VERSION}.safetensors"


def encode_shards(shards: Sequence[Shard], quantizer: QuantizerLike, folder: Path, threads: int) -> None:
    """Encodes every shard into `folder`, skipping those that are already there.

    Args:
      folder: Folder for this quantizer only: file names do not identify the quantizer.

    Raises:
      JobError: A shard is damaged.
    """
    missing = [(info, file) for info, file in shards if not (folder / encoded_shard_name(info)).exists()]
    with progress.track("encoding", sum(info.count for info, _ in missing)) as advance:

        def encode(shard: Shard) -> int:
            info, file = shard
            encode_shard(file, quantizer, folder / encoded_shard_name(info))
            return info.count

        for count in map_in_order(encode, missing, threads):
            advance(count)


def encode_shard(file: ShardFile, quantizer: QuantizerLike, target: Path) -> None:
    """Encodes one shard file, whose hash is verified by the caller or the file, and writes the result atomically.

    Raises:
      JobError: The shard is damaged.
    """
    LocalStorage(str(target.parent)).write(target.name, encode_shard_bytes(file.read_bytes(), quantizer, str(file)))


def encode_shard_bytes(data: bytes, quantizer: QuantizerLike, name: str, chunk: int = CHUNK) -> bytes:
    """Returns the encoded shard as the bytes of a safetensors file.

    Tensors: order_keys [n] uint64, assignments [n] uint32, codes [n, blocks] uint8, errors [n] float32 (squared
    distances between mapped vectors and their reconstructions), metadata [bytes] uint8, offsets [n + 1] int64.

    Args:
      data: Bytes of the shard file.
      name: Name of the shard, for errors.
      chunk: Number of vectors encoded at once.

    Raises:
      JobError: The shard is damaged.
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


def merge_shards(shards: Sequence[Shard], quantizer: QuantizerLike, folder: Path, metadata_file: Path) -> EncodedCorpus:
    """Merges the live records of all encoded shards, in an order that does not depend on the sharding.

    Memory holds the codes and about 40 bytes per item.

    Args:
      folder: Folder of the encoded shards.
      metadata_file: File to write; the result maps its metadata into memory.

    Raises:
      UsageError: A live record cannot be indexed, an id occurs twice, or there are no live records.
      JobError: An encoded shard is missing or damaged.
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
            encoded = _EncodedShard(folder / encoded_shard_name(info), info)
            require_valid_records(encoded.faults, info.count, info.dead, shard.name)
            start, end = end, end + info.live
            keys[start:end] = encoded.live("order_keys")
            assignments[start:end] = encoded.live("assignments")
            squared_error += float(encoded.live("errors").sum(dtype=np.float64))
            blob, blob_offsets = encoded.metadata()
            offsets[start + 1 : end + 1] = offsets[start] + blob_offsets[1:]
            file.write(blob.data)
    metadata_blob = np.memmap(metadata_file, np.uint8, "r")
    order = _device_order(shards, quantizer, folder, keys, assignments, ByteStrings.of_offsets(metadata_blob, offsets))
    del keys
    partition_sizes = np.bincount(assignments, minlength=len(quantizer.centroids))
    del assignments
    ranks = np.empty_like(order)
    ranks[order] = np.arange(count)
    codes = np.empty((count, len(quantizer.codebooks)), np.uint8)
    end = 0
    for info, _ in shards:
        start, end = end, end + info.live
        codes[ranks[start:end]] = _EncodedShard(folder / encoded_shard_name(info), info).live("codes")
    return EncodedCorpus(codes, partition_sizes, metadata_blob, offsets, order, squared_error / count)


def _device_order(
    shards: Sequence[Shard],
    quantizer: QuantizerLike,
    folder: Path,
    keys: npt.NDArray[np.uint64],
    assignments: npt.NDArray[np.uint32],
    metadata: ByteStrings,
) -> npt.NDArray[np.int64]:
    """Returns the live records' rows [n], sorted by partition, order key and id."""
    all_keys = (_EncodedShard(folder / encoded_shard_name(info), info).all("order_keys") for info, _ in shards)
    shared = require_unique_ids(all_keys, shards, quantizer.transform.shape[1])
    if not len(shared):
        return np.lexsort((keys, assignments))
    rows = np.flatnonzero(np.isin(keys, shared)).tolist()
    ranks = np.zeros(len(keys), np.uint32)
    ranks[sorted(rows, key=lambda row: json.loads(metadata[row])["id"])] = np.arange(len(rows))
    return np.lexsort((ranks, keys, assignments))


class _EncodedShard:
    """Reads an encoded shard file."""

    def __init__(self, path: Path, info: ShardInfo) -> None:
        self._path, self._info = path, info

    @property
    def faults(self) -> dict[int, str]:
        """Reasons why records cannot be indexed, by row."""
        return dict(json.loads(self._read(None))["faults"])

    def all(self, name: str) -> npt.NDArray[Any]:
        """Returns a tensor for all records."""
        tensor: npt.NDArray[Any] = self._read(name)
        return tensor

    def live(self, name: str) -> npt.NDArray[Any]:
        """Returns a tensor's rows for live records."""
        tensor = self.all(name)
        if len(tensor) != self._info.count:
            raise JobError(f"{self._path} holds {len(tensor)} records, expected {self._info.count}; delete it")
        return np.delete(tensor, self._info.dead, axis=0) if self._info.dead else tensor

    def metadata(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Returns the concatenated metadata of live records and their offsets."""
        blob, offsets = self.all("metadata"), self.all("offsets")
        if not self._info.dead:
            return blob, offsets
        return ByteStrings.of_offsets(blob, offsets).take(np.delete(np.arange(self._info.count), self._info.dead))

    def _read(self, tensor: str | None) -> Any:
        try:
            with safe_open(str(self._path), framework="numpy") as file:
                return file.get_tensor(tensor) if tensor else file.metadata()[_HEADER]
        except (SafetensorError, OSError) as error:
            raise JobError(
                f"encoded shard {self._path} cannot be read: {error}; delete it and run the command again"
            ) from None


@compiled
def _squared_errors(
    mapped: npt.NDArray[np.float32],
    codes: npt.NDArray[np.uint8],
    entries: npt.NDArray[np.float32],
    blocks: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
) -> None:
    """Writes each row's squared distance to its reconstruction; entries: [256, dim]; blocks: [dim], block numbers."""
    for row in range(len(mapped)):
        total = np.float32(0)
        for dim in range(mapped.shape[1]):
            difference = mapped[row, dim] - entries[codes[row, blocks[dim]], dim]
            total += difference * difference
        out[row] = total
