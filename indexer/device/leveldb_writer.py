"""Writes a LevelDB table, the format of the on-device index, to a stream.

Format: https://github.com/google/leveldb/blob/main/doc/table_format.md. Without compression, a table is byte-identical
to one from LevelDB's own builder with default options. The Task Library's index builder would do the same, but it takes
and returns the whole index in memory; this writer streams arrays through a buffer of one megabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled
from indexer.corpus.shard_reader import ByteStrings
from searchforge.artifacts.records import mask_crc
from searchforge.protobuf import varint

BLOCK_SIZE = 4096
"""Size in bytes at which a block of entries is closed: LevelDB's default."""

RESTART_INTERVAL = 16
"""Number of entries from one complete key to the next: LevelDB's default. Keys between omit the prefix they share."""

MAX_VALUE_BYTES = 2**32 - 2**16
"""Maximum size of a value in bytes: offsets inside a block have 32 bits."""

_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_HANDLES = 40
_RAW, _SNAPPY = b"\0", b"\1"
_BUFFER_BYTES = 2**20
_MAX_HEADER_BYTES = 3 * 5
"""Maximum size in bytes of an entry's three lengths."""

Buffer = bytes | memoryview | npt.NDArray[np.generic]
"""C-contiguous data of any type and shape."""


class TableWriter:
    """Writes one table; `finish` must be the last call.

    Memory holds a megabyte and less than 100 bytes per block. A value that fills a block is written without a copy.
    """

    def __init__(self, file: BinaryIO, compression: bool) -> None:
        """Begins a table at the file's position.

        Args:
          compression: Whether to compress, with Snappy, entries that ask for it; a block that would shrink by less than
            an eighth is stored raw.
        """
        self._file, self._compression = file, compression
        self._written = 0
        self._last: bytes | None = None
        self._buffer = np.empty(_BUFFER_BYTES, np.uint8)  # begins with the open block
        self._size = self._entries = 0  # size and entries of the open block
        self._restarts = np.zeros(BLOCK_SIZE // RESTART_INTERVAL, "<u4")  # sufficient, as an entry has at least 3 bytes
        self._compress = False  # whether to compress the open block
        self._pending = b""  # handle of the last block, until the next key determines its index key
        self._index = bytearray()
        self._index_restarts: list[int] = []

    def add(self, key: bytes, value: Buffer, compress: bool = False) -> None:
        """Adds one entry.

        Args:
          compress: Whether to compress the entry if the table's compression is on. Entries with and without compression
            never share a block.

        Raises:
          ValueError: The key is not greater than the last one, or the value is too long.
        """
        data = np.frombuffer(value, np.uint8)
        if len(data) > MAX_VALUE_BYTES:
            raise ValueError(
                f"value of {key!r} has {len(data)} bytes, but LevelDB accepts at most {MAX_VALUE_BYTES}; split it"
            )
        if self._compress != (compress and self._compression):
            self._close_block()
            self._compress = not self._compress
        self._expect(key)
        shared = 0
        if self._entries % RESTART_INTERVAL:
            shared = _shared(self._last or b"", key)
        else:
            self._restarts[self._entries // RESTART_INTERVAL] = self._size
        header = varint(shared) + varint(len(key) - shared) + varint(len(data)) + key[shared:]
        self._last = key
        self._entries += 1
        end = self._size + len(header) + len(data)
        if end + len(self._block_trailer()) >= BLOCK_SIZE:
            self._write_block(self._buffer[: self._size].data, header, data.data, self._block_trailer())
            return
        self._buffer[self._size : end - len(data)] = np.frombuffer(header, np.uint8)
        self._buffer[end - len(data) : end] = data
        self._size = end

    def add_many(self, keys: ByteStrings, values: ByteStrings, compress: bool = False) -> None:
        """Adds many entries, with the same result as `add` for each of them, but faster.

        Raises:
          ValueError: As for `add`; entries before the faulty one are in the table.
        """
        closed = np.empty((_BUFFER_BYTES // BLOCK_SIZE + 1, 2), np.int64)
        arrays = (keys.data, keys.starts, keys.ends, values.data, values.starts, values.ends)
        row = 0
        while row < len(keys):
            # `add` handles the first entry, and those at which the compiled loop stops: too large or out of order.
            self.add(keys[row], values.data[values.starts[row] : values.ends[row]], compress)
            row += 1
            if row == len(keys):
                break
            self._expect(keys[row])
            row, blocks, start, end, entries = _lay_out(
                *arrays, row, self._buffer, self._size, self._entries, self._restarts, closed
            )
            block_start = 0
            for block_end, next_row in closed[:blocks].tolist():
                self._write_block(self._buffer[block_start:block_end].data)
                self._last, block_start = keys[next_row - 1], block_end
                if next_row < len(keys):
                    self._expect(keys[next_row])
            self._last, self._size, self._entries = keys[row - 1], end - start, entries
            self._buffer[: self._size] = self._buffer[start:end].copy()

    def finish(self) -> int:
        """Writes the rest of the table and returns its size in bytes."""
        self._close_block()
        if self._pending:
            self._index_block(_short_successor(self._last or b""))
        metaindex = self._write(_restart_bytes([0]))
        index = self._write(self._index, _restart_bytes(self._index_restarts or [0]))
        footer = (metaindex + index).ljust(_FOOTER_HANDLES, b"\0") + _MAGIC
        self._file.write(footer)
        return self._written + len(footer)

    def _close_block(self) -> None:
        if self._entries:
            self._write_block(self._buffer[: self._size].data, self._block_trailer())

    def _block_trailer(self) -> bytes:
        return _restart_bytes(self._restarts[: -(-self._entries // RESTART_INTERVAL)])

    def _write_block(self, *pieces: bytes | memoryview) -> None:
        """Writes the open block, compressed if that is worthwhile."""
        if self._compress:
            import pyarrow

            raw = b"".join(pieces)
            packed = pyarrow.compress(raw, codec="snappy", asbytes=True)
            worth_it = len(packed) < len(raw) - len(raw) // 8
            self._pending = self._write(packed, kind=_SNAPPY) if worth_it else self._write(raw)
        else:
            self._pending = self._write(*pieces)
        self._size = self._entries = 0

    def _write(self, *pieces: bytes | bytearray | memoryview, kind: bytes = _RAW) -> bytes:
        """Writes one block and returns its handle: position and length."""
        crc, size = 0, 0
        for piece in (*pieces, kind):
            # As an array: the only type that google_crc32c accepts without a copy.
            crc = google_crc32c.extend(crc, np.frombuffer(piece, np.uint8))
            size += len(piece)
            self._file.write(piece)
        self._file.write(mask_crc(crc).to_bytes(4, "little"))
        handle = varint(self._written) + varint(size - len(kind))
        self._written += size + 4
        return handle

    def _expect(self, key: bytes) -> None:
        """Rejects a key that is not greater than the last, and adds the pending block, if any, to the index."""
        if self._last is None:
            return
        if key <= self._last:
            raise ValueError(f"key {key!r} comes after {self._last!r}, expected ascending keys; sort them")
        if self._pending:
            self._index_block(_short_separator(self._last, key))

    def _index_block(self, key: bytes) -> None:
        self._index_restarts.append(len(self._index))
        self._index += b"\0" + varint(len(key)) + varint(len(self._pending)) + key + self._pending
        self._pending = b""


def _shared(key: bytes, other: bytes) -> int:
    """Returns the length of the prefix that two keys share."""
    both = min(len(key), len(other))
    return next((i for i in range(both) if key[i] != other[i]), both)


def _restart_bytes(restarts: Sequence[int] | npt.NDArray[np.uint32]) -> bytes:
    """Returns the end of a block: the offsets of its complete keys, and their number."""
    return np.array([*restarts, len(restarts)], "<u4").tobytes()


def _short_separator(key: bytes, limit: bytes) -> bytes:
    """Returns LevelDB's short key >= `key` and < `limit`: one byte incremented, the rest dropped."""
    shared = _shared(key, limit)
    if shared < len(key) and key[shared] + 1 < limit[shared]:
        return key[:shared] + bytes([key[shared] + 1])
    return key


def _short_successor(key: bytes) -> bytes:
    """Returns LevelDB's short key >= `key`."""
    shared = len(key) - len(key.lstrip(b"\xff"))
    return key[:shared] + bytes([key[shared] + 1]) if shared < len(key) else key


@compiled
def _lay_out(
    keys: npt.NDArray[np.uint8],
    key_starts: npt.NDArray[np.int64],
    key_ends: npt.NDArray[np.int64],
    values: npt.NDArray[np.uint8],
    value_starts: npt.NDArray[np.int64],
    value_ends: npt.NDArray[np.int64],
    row: int,
    buffer: npt.NDArray[np.uint8],
    end: int,
    entries: int,
    restarts: npt.NDArray[np.uint32],
    closed: npt.NDArray[np.int64],
) -> tuple[int, int, int, int, int]:
    """Appends entries from `row` > 0 to the open block and further ones, until one does not fit or is out of order.

    Args:
      buffer: Begins with the open block, of `end` bytes and `entries` entries.
      restarts: Offsets of the open block's complete keys.
      closed: Receives the end in `buffer` of every block closed, and the row after it.

    Returns:
      The next row, the number of blocks closed, the start and end of the open block in `buffer`, and its entries.
    """
    start, blocks = 0, 0
    while row < len(key_starts):
        key_start, key_size = key_starts[row], key_ends[row] - key_starts[row]
        value_size = value_ends[row] - value_starts[row]
        if end + _MAX_HEADER_BYTES + key_size + value_size + 4 * (len(restarts) + 1) > len(buffer):
            break
        last_start, last_size = key_starts[row - 1], key_ends[row - 1] - key_starts[row - 1]
        both, shared = min(last_size, key_size), 0
        while shared < both and keys[last_start + shared] == keys[key_start + shared]:
            shared += 1
        if shared == key_size or (shared < last_size and keys[last_start + shared] > keys[key_start + shared]):
            break
        if entries % RESTART_INTERVAL == 0:
            restarts[entries // RESTART_INTERVAL] = end - start
            shared = 0
        end = _put_varint(buffer, end, shared)
        end = _put_varint(buffer, end, key_size - shared)
        end = _put_varint(buffer, end, value_size)
        for i in range(shared, key_size):
            buffer[end + i - shared] = keys[key_start + i]
        end += key_size - shared
        buffer[end : end + value_size] = values[value_starts[row] : value_ends[row]]
        end += value_size
        entries += 1
        row += 1
        used = (entries + RESTART_INTERVAL - 1) // RESTART_INTERVAL
        if end - start + 4 * (used + 1) >= BLOCK_SIZE:
            for i in range(used):
                end = _put_uint32(buffer, end, restarts[i])
            end = _put_uint32(buffer, end, used)
            closed[blocks, 0], closed[blocks, 1] = end, row
            start, blocks, entries = end, blocks + 1, 0
    return row, blocks, start, end, entries


@compiled
def _put_varint(out: npt.NDArray[np.uint8], at: int, value: int) -> int:
    while value > 0x7F:
        out[at] = value & 0x7F | 0x80
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@compiled
def _put_uint32(out: npt.NDArray[np.uint8], at: int, value: int) -> int:
    for i in range(4):
        out[at + i] = value >> 8 * i & 0xFF
    return at + 4
