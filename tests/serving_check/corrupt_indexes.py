"""Corruptions of the index: its LevelDB blocks, its configuration, its codes, codebooks and centroids."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from indexer.device.leveldb_writer import TableWriter
from searchforge.artifacts.searcher import INDEX, TEXT_SEARCHER
from tests.serving_check.searcher_parts import Entries, Index, table_entries
from tests.serving_check.specimen import PARTITIONS, Specimen, caught_by


@caught_by("index")
def the_table_is_cut_in_half(specimen: Specimen) -> None:
    table = specimen.path(INDEX).read_bytes()
    specimen.replace_table(table[: len(table) // 2])


@caught_by("index")
def the_table_lacks_its_first_byte(specimen: Specimen) -> None:
    specimen.replace_table(specimen.path(INDEX).read_bytes()[1:])


@caught_by("index")
def a_byte_of_the_codes_is_flipped(specimen: Specimen) -> None:
    """The checksum of the block is unchanged."""
    table = bytearray(specimen.path(INDEX).read_bytes())
    codes = specimen.index().codes[0]
    start = table.index(codes.tobytes())
    table[start + int(specimen.random.integers(codes.size))] ^= 0xFF
    specimen.replace_table(bytes(table))


@caught_by("index")
def a_byte_of_the_tables_own_index_is_flipped(specimen: Specimen) -> None:
    table = bytearray(specimen.path(INDEX).read_bytes())
    table[len(table) - 48 - int(specimen.random.integers(5, 40))] ^= 0x10
    specimen.replace_table(bytes(table))


class _Unordered(TableWriter):
    """A table writer that accepts keys in any order."""

    def _expect(self, key: bytes) -> None:
        if self._pending:
            self._index_block(self._last or b"")


def _unordered(entries: Entries, keys: list[bytes]) -> bytes:
    file = io.BytesIO()
    writer = _Unordered(file, compression=False)
    for key in keys:
        writer.add(key, entries[key])
    writer.finish()
    return file.getvalue()


@caught_by("index")
def the_keys_of_the_table_are_not_in_order(specimen: Specimen) -> None:
    """The table is complete, but a binary search does not find the keys."""
    entries = table_entries(specimen.path(INDEX).read_bytes())
    specimen.replace_table(_unordered(entries, sorted(entries, reverse=True)))


@caught_by("index")
def two_keys_of_the_table_are_not_in_order(specimen: Specimen) -> None:
    entries = table_entries(specimen.path(INDEX).read_bytes())
    keys = sorted(entries)
    i = keys.index(b"M_120")
    keys[i], keys[i + 20] = keys[i + 20], keys[i]
    specimen.replace_table(_unordered(entries, keys))


class _Claiming(TableWriter):
    """A table writer whose compressed blocks claim to be far larger."""

    def _write_block(self, *pieces: Any) -> None:
        if not self._compress:
            super()._write_block(*pieces)
            return
        claim = b"\xff\xff\xff\xff\x0f"  # 4 GiB, as Snappy encodes a length
        self._pending = self._write(claim + b"".join(pieces), kind=b"\1")
        self._size = self._entries = 0


@caught_by("index", runs=True)
def blocks_of_the_table_do_not_decompress(specimen: Specimen) -> None:
    """They claim to have 4 GiB each; their checksums are valid."""
    entries = table_entries(specimen.path(INDEX).read_bytes())
    file = io.BytesIO()
    writer = _Claiming(file, compression=True)
    for key in sorted(entries):
        writer.add(key, entries[key], compress=key.startswith(b"M_"))
    writer.finish()
    specimen.replace_table(file.getvalue())


@caught_by("index")
def the_metadata_of_an_item_has_no_key(specimen: Specimen) -> None:
    specimen.change_entries(lambda entries: entries.pop(b"M_%d" % specimen.random.integers(1, 100)))


@caught_by("index")
def a_partition_has_no_key(specimen: Specimen) -> None:
    specimen.change_entries(lambda entries: entries.pop(b"E_%d" % specimen.random.integers(PARTITIONS)))


@caught_by("index")
def there_is_no_configuration(specimen: Specimen) -> None:
    specimen.change_entries(lambda entries: entries.pop(b"INDEX_CONFIG"))


@caught_by("index")
def the_configuration_is_truncated(specimen: Specimen) -> None:
    specimen.change_entries(lambda e: e.update({b"INDEX_CONFIG": e[b"INDEX_CONFIG"][: len(e[b"INDEX_CONFIG"]) // 2]}))


@caught_by("index")
def a_codes_last_byte_is_missing(specimen: Specimen) -> None:
    specimen.change_entries(lambda entries: entries.update({b"E_3": entries[b"E_3"][:-1]}))


@caught_by("index")
def the_table_has_one_partition_too_many(specimen: Specimen) -> None:
    specimen.change_entries(lambda entries: entries.update({b"E_%d" % PARTITIONS: entries[b"E_0"]}))


def _any_leaf(specimen: Specimen, index: Index) -> Any:
    return index.leaves[int(specimen.random.integers(PARTITIONS))]


def _zero(message: Any) -> None:
    """Sets all values of a centroid, or of an entry of a codebook, to 0."""
    message.dimension[:] = [0.0] * len(message.dimension)


@caught_by("index")
def a_centroid_is_all_zeros(specimen: Specimen) -> None:
    def zero(index: Index) -> None:
        _zero(_any_leaf(specimen, index))

    specimen.change_index(zero)


@caught_by("index", runs=True)
def a_centroid_holds_a_value_that_is_not_a_number(specimen: Specimen) -> None:
    def poison(index: Index) -> None:
        _any_leaf(specimen, index).dimension[3] = float("nan")

    specimen.change_index(poison)


@caught_by("index")
def a_centroid_lacks_a_dimension(specimen: Specimen) -> None:
    specimen.change_index(lambda index: _any_leaf(specimen, index).dimension.pop())


@caught_by("index", runs=True)
def there_are_no_centroids(specimen: Specimen) -> None:
    def forget(index: Index) -> None:
        del index.leaves[:]

    specimen.change_index(forget)


@caught_by("index")
def a_centroid_is_missing(specimen: Specimen) -> None:
    def forget(index: Index) -> None:
        del index.leaves[-1]

    specimen.change_index(forget)


@caught_by("index", runs=True)
def a_codebook_holds_infinity(specimen: Specimen) -> None:
    def poison(index: Index) -> None:
        index.blocks[2].entry[int(specimen.random.integers(256))].dimension[0] = float("inf")

    specimen.change_index(poison)


@caught_by("index")
def the_codebooks_are_all_zeros(specimen: Specimen) -> None:
    def zero(index: Index) -> None:
        for block in index.blocks:
            for entry in block.entry:
                _zero(entry)

    specimen.change_index(zero)


@caught_by("index", runs=True)
def a_codebook_has_half_its_entries(specimen: Specimen) -> None:
    def halve(index: Index) -> None:
        block = int(np.argmax([codes.max() for codes in np.concatenate(index.codes).T]))
        del index.blocks[block].entry[128:]

    specimen.change_index(halve)


@caught_by("index")
def a_codebook_is_missing(specimen: Specimen) -> None:
    def forget(index: Index) -> None:
        del index.blocks[-1]

    specimen.change_index(forget)


@caught_by("index")
def the_partition_offsets_are_shifted(specimen: Specimen) -> None:
    """Every code is then attributed to its neighbour."""

    def shift(index: Index) -> None:
        index.offsets = [offset + 1 for offset in index.offsets]

    specimen.change_index(shift)


@caught_by("index", runs=True)
def the_partition_offsets_are_missing(specimen: Specimen) -> None:
    specimen.change_index(lambda index: index.offsets.clear())


@caught_by("index")
def the_codes_of_a_partition_are_missing(specimen: Specimen) -> None:
    def empty(index: Index) -> None:
        partition = int(specimen.random.integers(PARTITIONS))
        index.codes[partition] = index.codes[partition][:0]

    specimen.change_index(empty)


@caught_by("index")
def the_codes_of_two_partitions_are_swapped(specimen: Specimen) -> None:
    """Offsets and metadata are unchanged."""

    def swap(index: Index) -> None:
        sizes = [len(codes) for codes in index.codes]
        i, j = int(np.argmin(sizes)), int(np.argmax(sizes))
        index.codes[i], index.codes[j] = index.codes[j], index.codes[i]

    specimen.change_index(swap)


def _setting(change: Callable[[Index], object]) -> Callable[[Specimen], None]:
    return lambda specimen: specimen.change_index(change)


@caught_by("index")
def a_query_searches_no_partition(specimen: Specimen) -> None:
    _setting(lambda index: setattr(index.scann.partitioner, "search_fraction", 0.0))(specimen)


@caught_by("index")
def a_query_searches_only_one_partition(specimen: Specimen) -> None:
    _setting(lambda index: setattr(index.scann.partitioner, "search_fraction", 0.5 / PARTITIONS))(specimen)


@caught_by("index")
def a_query_searches_one_partition_more_than_was_measured(specimen: Specimen) -> None:
    """4 / 8 may be rounded up in float32 if the indexer does not prevent it."""
    _setting(lambda index: setattr(index.scann.partitioner, "search_fraction", 4.0000005 / PARTITIONS))(specimen)


@caught_by("index", runs=True)
def the_search_fraction_is_not_a_number(specimen: Specimen) -> None:
    _setting(lambda index: setattr(index.scann.partitioner, "search_fraction", float("nan")))(specimen)


@caught_by("index", runs=True)
def the_bytes_of_a_code_are_wrong(specimen: Specimen) -> None:
    _setting(lambda index: setattr(index, "code_bytes", 2 * index.code_bytes))(specimen)


@caught_by("index")
def the_codes_are_declared_as_floats(specimen: Specimen) -> None:
    _setting(lambda index: setattr(index, "kind", 1))(specimen)


@caught_by("index")
def the_distance_is_squared_l2(specimen: Specimen) -> None:
    def change(index: Index) -> None:
        for message in (index.scann, index.scann.partitioner, index.scann.indexer.asymmetric_hashing):
            message.query_distance = 0

    specimen.change_index(change)


@caught_by("index")
def the_distance_of_the_partitions_is_squared_l2(specimen: Specimen) -> None:
    _setting(lambda index: setattr(index.scann.partitioner, "query_distance", 0))(specimen)


@caught_by("index")
def the_look_up_tables_have_another_type_than_in_the_build(specimen: Specimen) -> None:
    _setting(lambda index: setattr(index.scann.indexer.asymmetric_hashing, "lookup_type", 2))(specimen)


@caught_by("index")
def the_two_searchers_contain_different_indexes(specimen: Specimen) -> None:
    """Both index the same items, but with different quantizers."""
    index = specimen.index()
    index.change_user_info(quantizer="0" * 16)
    specimen.replace_index(index, [TEXT_SEARCHER])


@caught_by("codes")
def the_leading_byte_of_many_codes_is_flipped(specimen: Specimen) -> None:
    def flip(index: Index) -> None:
        codes = np.concatenate(index.codes)
        codes[specimen.random.random(len(codes)) < 0.5, 0] ^= 0xFF
        index.replace_codes(codes)

    specimen.change_index(flip)


@caught_by("codes")
def one_code_is_another_items(specimen: Specimen) -> None:
    def replace(index: Index) -> None:
        codes = np.concatenate(index.codes)
        i, j = specimen.random.choice(len(codes), 2, replace=False)
        codes[i] = codes[j]
        index.replace_codes(codes)

    specimen.change_index(replace)


@caught_by("codes")
def a_tenth_of_the_codes_are_zeros(specimen: Specimen) -> None:
    def zero(index: Index) -> None:
        codes = np.concatenate(index.codes)
        codes[specimen.random.choice(len(codes), len(codes) // 10, replace=False)] = 0
        index.replace_codes(codes)

    specimen.change_index(zero)


@caught_by("codes")
def the_codes_of_a_partition_are_in_another_order(specimen: Specimen) -> None:
    def turn(index: Index) -> None:
        partition = int(np.argmax([len(codes) for codes in index.codes]))
        index.codes[partition] = index.codes[partition][::-1]

    specimen.change_index(turn)


@caught_by("codes")
def the_bytes_of_every_code_are_in_another_order(specimen: Specimen) -> None:
    specimen.change_index(lambda index: index.replace_codes(np.concatenate(index.codes)[:, ::-1]))


@caught_by("codes")
def the_codebooks_are_another_indexes(specimen: Specimen) -> None:
    """The entries of the other index, split into the blocks of this one."""

    def replace(index: Index) -> None:
        columns = [
            np.array([entry.dimension for entry in block.entry]) for block in specimen.index(specimen.other).blocks
        ]
        entries = np.split(np.concatenate(columns, axis=1), np.cumsum(index.widths)[:-1], axis=1)
        for block, book in zip(index.blocks, entries, strict=True):
            for entry, values in zip(block.entry, book.tolist(), strict=True):
                entry.dimension[:] = values

    specimen.change_index(replace)


@caught_by("codes")
def the_codebooks_of_two_blocks_are_swapped(specimen: Specimen) -> None:
    """The blocks have the same width."""

    def swap(index: Index) -> None:
        width = max(set(index.widths), key=index.widths.count)
        i, *_, j = [block for block, found in enumerate(index.widths) if found == width]
        first = index.blocks[i].SerializeToString()
        index.blocks[i].ParseFromString(index.blocks[j].SerializeToString())
        index.blocks[j].ParseFromString(first)

    specimen.change_index(swap)


@caught_by("codes")
def a_codebook_is_all_zeros(specimen: Specimen) -> None:
    """Its block then contributes nothing to any score."""

    def zero(index: Index) -> None:
        for entry in index.blocks[0].entry:
            _zero(entry)

    specimen.change_index(zero)


@caught_by("codes")
def the_entries_of_the_leading_codebook_are_in_another_order(specimen: Specimen) -> None:
    def turn(index: Index) -> None:
        entries = [list(entry.dimension) for entry in index.blocks[0].entry]
        for entry, values in zip(index.blocks[0].entry, reversed(entries), strict=True):
            entry.dimension[:] = values

    specimen.change_index(turn)


def _centroids(index: Index) -> list[list[float]]:
    return [list(leaf.dimension) for leaf in index.leaves]


def _set_centroids(index: Index, values: list[list[float]]) -> None:
    for leaf, centroid in zip(index.leaves, values, strict=True):
        leaf.dimension[:] = centroid


@caught_by("partitions")
def two_centroids_are_swapped(specimen: Specimen) -> None:
    def swap(index: Index) -> None:
        values = _centroids(index)
        i, j = specimen.random.choice(PARTITIONS, 2, replace=False)
        values[i], values[j] = values[j], values[i]
        _set_centroids(index, values)

    specimen.change_index(swap)


@caught_by("partitions")
def all_centroids_are_shifted_by_one(specimen: Specimen) -> None:
    def rotate(index: Index) -> None:
        values = _centroids(index)
        _set_centroids(index, values[1:] + values[:1])

    specimen.change_index(rotate)


@caught_by("partitions")
def the_centroids_are_another_indexes(specimen: Specimen) -> None:
    other = _centroids(specimen.index(specimen.other))
    specimen.change_index(lambda index: _set_centroids(index, other))


@caught_by("partitions")
def a_centroid_is_negated(specimen: Specimen) -> None:
    """Its partition is then searched for queries that are farthest from its items."""

    def negate(index: Index) -> None:
        leaf = _any_leaf(specimen, index)
        leaf.dimension[:] = [-value for value in leaf.dimension]

    specimen.change_index(negate)


@caught_by("partitions")
def a_centroid_is_ten_times_too_long(specimen: Specimen) -> None:
    """Half of all queries then search its partition regardless of their content, and the others never do."""

    def stretch(index: Index) -> None:
        leaf = _any_leaf(specimen, index)
        leaf.dimension[:] = [10 * value for value in leaf.dimension]

    specimen.change_index(stretch)


@caught_by("partitions")
def a_centroid_is_a_thousand_times_too_short(specimen: Specimen) -> None:
    def shrink(index: Index) -> None:
        leaf = _any_leaf(specimen, index)
        leaf.dimension[:] = [value / 1000 for value in leaf.dimension]

    specimen.change_index(shrink)


@caught_by("partitions")
def the_items_of_two_partitions_are_swapped(specimen: Specimen) -> None:
    """Codes and metadata are swapped together, so that only the centroids are wrong."""

    def swap(index: Index) -> None:
        items = [
            index.metadata[start : start + len(codes)] for start, codes in zip(index.offsets, index.codes, strict=True)
        ]
        i, j = specimen.random.choice(PARTITIONS, 2, replace=False)
        items[i], items[j] = items[j], items[i]
        index.codes[i], index.codes[j] = index.codes[j], index.codes[i]
        index.metadata = [metadata for part in items for metadata in part]
        index.lay_out()

    specimen.change_index(swap)
