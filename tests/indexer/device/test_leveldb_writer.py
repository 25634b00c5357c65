"""Tables contain the entries that were added, in well-formed blocks with valid checksums."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest

from indexer.corpus.shard_reader import ByteStrings
from indexer.device.leveldb_writer import BLOCK_SIZE, MAX_VALUE_BYTES, Buffer, TableWriter
from searchforge.protobuf import read_varint, varint
from serving_check.formats.leveldb_reader import _block, _entries, _handle, read_table

Entries = Sequence[tuple[bytes, bytes]]


def one_by_one(entries: Entries, compression: bool = False) -> bytes:
    file = io.BytesIO()
    table = TableWriter(file, compression)
    for key, value in entries:
        table.add(key, value, compress=True)
    assert table.finish() == len(file.getvalue())
    return file.getvalue()


def at_once(entries: Entries, compression: bool = False, calls: int = 1) -> bytes:
    file = io.BytesIO()
    table = TableWriter(file, compression)
    for rows in np.array_split(np.arange(len(entries)), calls):
        keys, values = (strings([entries[row][part] for row in rows]) for part in (0, 1))
        table.add_many(keys, values, compress=True)
    assert table.finish() == len(file.getvalue())
    return file.getvalue()


def strings(values: Sequence[bytes]) -> ByteStrings:
    return ByteStrings.of_offsets(np.frombuffer(b"".join(values), np.uint8), np.cumsum([0, *map(len, values)]))


def random_entries(seed: int, count: int, longest: int) -> Entries:
    """Returns entries with keys that share prefixes or are prefixes of each other, and values of many lengths."""
    rng = np.random.default_rng(seed)
    keys = {bytes(rng.choice([0, 97, 98, 254, 255], rng.integers(0, 9)).tolist()) for _ in range(count)}
    lengths = np.floor(longest ** rng.random(len(keys))).astype(int) - 1
    return [(key, rng.bytes(length)) for key, length in zip(sorted(keys), lengths.tolist(), strict=True)]


TABLES: dict[str, Entries] = {
    "nothing": [],
    "one empty entry": [(b"", b"")],
    "one entry": [(b"key", b"value")],
    "keys without a short successor": [(b"\xff" * length, b"x" * 2_000) for length in range(1, 30)],
    "small values": random_entries(1, 9_000, 100),
    "values about a block long": random_entries(2, 300, 2 * BLOCK_SIZE),
    "a few values of megabytes": random_entries(3, 12, 3_000_000),
    "many blocks": [(b"%07d" % i, bytes(40 + i % 50)) for i in range(40_000)],
}


@pytest.mark.parametrize("compression", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_contains_the_entries_however_they_were_added(name: str, compression: bool) -> None:
    entries = TABLES[name]
    table = one_by_one(entries, compression)
    assert list(read_table(table)) == list(entries)
    for calls in (1, 7):
        assert at_once(entries, compression, calls) == table


@pytest.mark.parametrize("name", TABLES)
def test_every_key_is_found_in_its_block(name: str) -> None:
    """Index keys are not less than the last key of their block, and less than the first key of the next."""
    entries = [key for key, _ in TABLES[name]]
    table = one_by_one(TABLES[name])
    first = 0
    for separator, count in index_of(table):
        block = entries[first : first + count]
        assert block
        assert block[-1] <= separator
        first += count
        assert all(separator < key for key in entries[first : first + 1])
    assert first == len(entries)


def test_a_damaged_byte_is_detected() -> None:
    table = one_by_one(TABLES["values about a block long"], compression=True)
    for position in np.random.default_rng(5).integers(0, len(table) - 48, 50).tolist():
        damaged = bytearray(table)
        damaged[position] ^= 1
        with pytest.raises(ValueError, match="wrong checksum"):
            list(read_table(bytes(damaged)))


def test_only_compressible_blocks_are_compressed() -> None:
    noise, zeros = np.random.default_rng(6).bytes(10_000), bytes(10_000)
    for compression, compress, smaller in ((True, True, True), (True, False, False), (False, True, False)):
        file = io.BytesIO()
        table = TableWriter(file, compression)
        table.add(b"a", noise, compress)
        table.add(b"b", zeros, compress)
        size = table.finish()
        assert noise in file.getvalue()
        assert (zeros in file.getvalue()) is not smaller
        assert (size < 12_000) is smaller


def test_compressed_and_uncompressed_entries_share_no_block() -> None:
    file = io.BytesIO()
    table = TableWriter(file, compression=True)
    for i in range(10):
        table.add(b"%d" % i, bytes(200), compress=i >= 5)
    table.finish()
    assert [count for _, count in index_of(file.getvalue())] == [5, 5]
    assert dict(read_table(file.getvalue())) == {b"%d" % i: bytes(200) for i in range(10)}


def test_values_may_be_any_buffer() -> None:
    codes = np.random.default_rng(7).integers(0, 256, (100, 64), np.uint8)
    file = io.BytesIO()
    table = TableWriter(file, compression=False)
    values: list[Buffer] = [
        codes.tobytes(),
        codes,
        codes.view(np.float32),
        memoryview(codes.tobytes()),
        codes[3:3],
        codes[5:7],
    ]
    for i, value in enumerate(values):
        table.add(b"%d" % i, value)
    table.finish()
    assert [value for _, value in read_table(file.getvalue())] == [bytes(value) for value in values]


@pytest.mark.parametrize("keys", [(b"b", b"a"), (b"a", b"a"), (b"ab", b"a"), (b"a", b""), (b"", b"")])
@pytest.mark.parametrize("value", [b"", bytes(BLOCK_SIZE), bytes(2**21)])
def test_keys_out_of_order_are_rejected(keys: tuple[bytes, bytes], value: bytes) -> None:
    entries = [(key, value) for key in keys]
    with pytest.raises(ValueError, match="expected ascending keys"):
        one_by_one(entries)
    for calls in (1, 2):
        with pytest.raises(ValueError, match="expected ascending keys"):
            at_once(entries, calls=calls)


def test_an_error_names_the_key_that_is_out_of_order() -> None:
    entries = [(b"%05d" % i, b"x") for i in range(20_000)]
    entries[12_345] = (b"00001", b"x")
    with pytest.raises(ValueError, match="key b'00001' comes after b'12344'"):
        at_once(entries)


def test_a_value_too_long_for_the_format_is_rejected() -> None:
    too_long = np.empty(MAX_VALUE_BYTES + 1, np.uint8)  # allocated, never touched
    with pytest.raises(ValueError, match="split it"):
        TableWriter(io.BytesIO(), compression=False).add(b"key", too_long)


def test_varints_survive_a_round_trip() -> None:
    for value in (0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**32, 2**63):
        assert read_varint(varint(value), 0) == (value, len(varint(value)))


def index_of(table: bytes) -> list[tuple[bytes, int]]:
    """Returns the index key and the number of entries of every block."""
    footer = table[-48:]
    offset, size, _ = _handle(footer, _handle(footer, 0)[2])
    handles = [(key, _handle(handle, 0)) for key, handle in _entries(_block(table, offset, size))]
    return [(key, len(list(_entries(_block(table, at, length))))) for key, (at, length, _) in handles]
