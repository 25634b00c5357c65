"""Writes the Task Library's index: a LevelDB table of codes by partition, the search's configuration and metadata.

Format: tensorflow_lite_support/scann_ondevice/cc/index_builder.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt

from indexer.corpus.shard_reader import ByteStrings
from indexer.device.index_config import index_config
from indexer.device.leveldb_writer import TableWriter
from indexer.encoding.encoded_shards import Merged
from searchforge.config import LutType

CHUNK = 65_536
"""Items whose metadata is written at once."""

_WRITE_BUFFER = 2**20
_PREFIX = np.frombuffer(b"M_", np.uint8)
"""Of the keys of metadata."""


def write_index(
    merged: Merged,
    centroids: npt.NDArray[np.float32],
    codebooks: Sequence[npt.NDArray[np.float32]],
    lut_type: LutType,
    search_fraction: float,
    compression: bool,
    user_info: str,
    path: Path,
) -> dict[str, int]:
    """Writes the index file of an encoded corpus, as a stream: it holds little more than INDEX_CONFIG in memory.

    Args:
      centroids: [partitions, dim] float32.
      codebooks: for each block of dimensions, [256, dimensions of the block] float32.
      lut_type: type of the device's look-up tables.
      search_fraction: of the partitions, that a query searches; see IndexParameters.search_fraction.
      compression: of metadata and `user_info`. Codes and floats hardly shrink, and a device reads a raw block from
        where it is mapped.
      user_info: stored beside the index; the Task Library's get_user_info returns it.
      path: written; incomplete if this raises.

    Returns:
      Size in bytes of every part before compression, and of the file.

    Raises:
      ValueError: the arrays do not fit together.
    """
    config = index_config(centroids, codebooks, lut_type, search_fraction, merged.partition_sizes)
    if merged.codes.shape != (merged.partition_sizes.sum(), len(codebooks)):
        raise ValueError(
            f"codes are {list(merged.codes.shape)}, expected [{merged.partition_sizes.sum()}, {len(codebooks)}] as the "
            "sizes of the partitions and the codebooks say; pass what belongs together"
        )
    info = user_info.encode()
    ends = np.cumsum(merged.partition_sizes)
    with path.open("wb", _WRITE_BUFFER) as file:
        table = TableWriter(file, compression)
        for partition in sorted(range(len(ends)), key=str):
            start = ends[partition] - merged.partition_sizes[partition]
            table.add(b"E_%d" % partition, merged.codes[start : ends[partition]])
        table.add(b"INDEX_CONFIG", config)
        _add_metadata(table, merged)
        table.add(b"USER_INFO", info, compress=True)
        index_file = table.finish()
    return {
        "codes": merged.codes.nbytes,
        "centroids_and_codebooks": len(config),
        "metadata": merged.metadata_bytes,
        "user_info": len(info),
        "index_file": index_file,
    }


def _add_metadata(table: TableWriter, merged: Merged) -> None:
    """Adds M_<item> of every item; the order of keys is lexical: 0, 1, 10, 100, 11, 2."""
    count, item = len(merged.order), 0
    for start in range(0, count, CHUNK):
        items = np.empty(min(CHUNK, count - start), np.int64)
        keys = np.empty(len(items) * (len(_PREFIX) + len(str(count))), np.uint8)
        offsets = np.zeros(len(items) + 1, np.int64)
        item = _lexical_keys(item, count, items, keys, offsets)
        rows = merged.order[items]
        values = ByteStrings(merged.metadata_blob, merged.metadata_offsets[rows], merged.metadata_offsets[rows + 1])
        table.add_many(ByteStrings.of_offsets(keys, offsets), values, compress=True)


@numba.njit(cache=True, nogil=True)
def _lexical_keys(
    item: int,
    count: int,
    items: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
) -> int:
    """Writes the items of 0..count - 1 from `item` on, in the order of their decimals, and their keys.

    Returns:
      The item that comes next, if there is one.
    """
    for i in range(len(items)):
        items[i] = item
        digits, above = 1, item // 10
        while above:
            digits, above = digits + 1, above // 10
        start, end = offsets[i], offsets[i] + len(_PREFIX) + digits
        keys[start : start + len(_PREFIX)] = _PREFIX
        rest = item
        for place in range(end - 1, end - 1 - digits, -1):
            keys[place] = ord("0") + rest % 10
            rest //= 10
        offsets[i + 1] = end
        if item == 0:
            item = 1
        elif item * 10 < count:
            item *= 10
        else:
            while item % 10 == 9 or item + 1 >= count:
                item //= 10
            item += 1
    return item
