"""Writes the Task Library's index: a LevelDB table of codes by partition, search configuration and metadata.

Format: tensorflow_lite_support/scann_ondevice/cc/index_builder.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled
from indexer.corpus.shard_reader import ByteStrings
from indexer.device.index_config import index_config
from indexer.device.leveldb_writer import TableWriter
from indexer.encoding.encoded_shards import EncodedCorpus
from searchforge.config import LutType

CHUNK = 65_536
"""Number of items whose metadata is written at once."""

_WRITE_BUFFER = 2**20
_PREFIX = np.frombuffer(b"M_", np.uint8)
"""Prefix of metadata keys."""


def write_index(
    encoded: EncodedCorpus,
    centroids: npt.NDArray[np.float32],
    codebooks: Sequence[npt.NDArray[np.float32]],
    lut_type: LutType,
    search_fraction: float,
    compression: bool,
    user_info: str,
    path: Path,
) -> dict[str, int]:
    """Writes the index file of an encoded corpus as a stream; memory holds little more than INDEX_CONFIG.

    Args:
      centroids: [partitions, dim] float32.
      codebooks: [256, dimensions of the block] float32 for each block of dimensions.
      lut_type: Element type of the device's look-up tables.
      search_fraction: `IndexParameters.search_fraction`.
      compression: Whether to compress metadata and `user_info`. Codes and floats hardly shrink, and a device uses
        uncompressed blocks in place from the mapped file.
      user_info: Text that the Task Library's get_user_info returns.
      path: File to write; incomplete if this raises.

    Returns:
      Size in bytes of each part before compression, and of the file.

    Raises:
      ValueError: The shapes disagree.
    """
    config = index_config(centroids, codebooks, lut_type, search_fraction, encoded.partition_sizes)
    if encoded.codes.shape != (encoded.partition_sizes.sum(), len(codebooks)):
        raise ValueError(
            f"codes are {list(encoded.codes.shape)}, expected [{encoded.partition_sizes.sum()}, {len(codebooks)}] to "
            "match the partition sizes and the codebooks"
        )
    info = user_info.encode()
    ends = np.cumsum(encoded.partition_sizes)
    with path.open("wb", _WRITE_BUFFER) as file:
        table = TableWriter(file, compression)
        for partition in sorted(range(len(ends)), key=str):
            start = ends[partition] - encoded.partition_sizes[partition]
            table.add(b"E_%d" % partition, encoded.codes[start : ends[partition]])
        table.add(b"INDEX_CONFIG", config)
        _add_metadata(table, encoded)
        table.add(b"USER_INFO", info, compress=True)
        index_file = table.finish()
    return {
        "codes": encoded.codes.nbytes,
        "centroids_and_codebooks": len(config),
        "metadata": encoded.metadata_bytes,
        "user_info": len(info),
        "index_file": index_file,
    }


def _add_metadata(table: TableWriter, encoded: EncodedCorpus) -> None:
    """Adds M_<item> for every item, in the lexical order of keys: 0, 1, 10, 100, 11, 2."""
    count, item = len(encoded.order), 0
    for start in range(0, count, CHUNK):
        items = np.empty(min(CHUNK, count - start), np.int64)
        keys = np.empty(len(items) * (len(_PREFIX) + len(str(count))), np.uint8)
        offsets = np.zeros(len(items) + 1, np.int64)
        item = _lexical_keys(item, count, items, keys, offsets)
        rows = encoded.order[items]
        values = ByteStrings(encoded.metadata_blob, encoded.metadata_offsets[rows], encoded.metadata_offsets[rows + 1])
        table.add_many(ByteStrings.of_offsets(keys, offsets), values, compress=True)


@compiled
def _lexical_keys(
    item: int,
    count: int,
    items: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
) -> int:
    """Writes the items of 0..count - 1 that follow from `item` on in lexical order, and their keys.

    Returns:
      The next item, if any.
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
