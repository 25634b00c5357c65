"""Reads a LevelDB table, the format of the on-device index, and verifies the checksum of every block.

The check has its own reader to be independent of the indexer's writer. Format:
https://github.com/google/leveldb/blob/main/doc/table_format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import google_crc32c

from searchforge.artifacts.records import mask_crc
from searchforge.protobuf import read_varint

MAGIC = bytes.fromhex("57fb808b247547db")
"""Last eight bytes of every table."""

_FOOTER_LENGTH = 48
_SNAPPY = 1


def read_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields every (key, value) of a table in ascending order of keys.

    Raises:
      ValueError: The bytes are not a complete, undamaged LevelDB table.
    """
    if len(table) < _FOOTER_LENGTH or not table.endswith(MAGIC):
        raise ValueError(f"{len(table)} bytes are not a LevelDB table: the last 8 bytes are not its magic number")
    footer = table[-_FOOTER_LENGTH:]
    try:
        offset, size, position = _handle(footer, 0)
        _block(table, offset, size)  # verifies the metaindex, which is empty
        offset, size, _ = _handle(footer, position)
        last: bytes | None = None
        for _, handle in _entries(_block(table, offset, size)):
            offset, size, _ = _handle(handle, 0)
            for key, value in _entries(_block(table, offset, size)):
                if last is not None and key <= last:  # a binary search would not find the key
                    raise ValueError(f"damaged LevelDB table: key {key[:40]!r} follows {last[:40]!r}")
                yield key, value
                last = key
    except (IndexError, struct.error) as error:
        raise ValueError(f"damaged LevelDB table: {error}") from None


def _block(table: bytes, offset: int, size: int) -> bytes:
    block, trailer = table[offset : offset + size], table[offset + size : offset + size + 5]
    kind, checksum = struct.unpack("<BI", trailer)
    crc = google_crc32c.value(table[offset : offset + size + 1])
    if checksum != mask_crc(crc):
        raise ValueError(f"damaged LevelDB table: the block at byte {offset} has a wrong checksum")
    if kind != _SNAPPY:
        return block
    import pyarrow

    length, _ = read_varint(block, 0)
    try:
        plain: bytes = pyarrow.decompress(block, decompressed_size=length, codec="snappy", asbytes=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"damaged LevelDB table: the block at byte {offset} cannot be decompressed: {error}") from None
    return plain


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 * (restarts + 1)
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        length, position = read_varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _handle(data: bytes, position: int) -> tuple[int, int, int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return offset, size, position
