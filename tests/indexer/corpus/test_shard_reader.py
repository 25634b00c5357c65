"""An embedding shard is read into arrays, and its faulty records are reported."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from indexer.corpus.shard_reader import NORM_TOLERANCE, ByteStrings, ShardRecords, parse_shard, read_shard
from searchforge.errors import JobError, SearchforgeError
from tests.indexer.shards import records, with_metadata_text, write_shard, write_shards
from tests.indexer.tiny_corpus import DIM


def with_vector(folder: Path, vector: np.ndarray) -> ShardRecords:
    """Reads a shard of six records in which `id3` has the given vector."""
    items = records()
    items[3] = dataclasses.replace(items[3], embedding=vector.astype(np.float32))
    return read_shard(write_shards(folder, items, 1)[0][1], DIM)


def test_every_record_matches_the_codec(tmp_path: Path) -> None:
    names = ["a.jpg", "ü/日本.jpg", 'quote".png', "", "x" * 300, "new\nline"]
    metadata = [{}, {"b": [1, {"é": None}]}, {"z": 1.5, "a": "x"}, {"id": ""}, {"long": "y" * 1_000_000}, {"f": 1e300}]
    items = [
        dataclasses.replace(record, id=id, metadata=value)
        for record, id, value in zip(records(), names, metadata, strict=True)
    ]
    (_, path) = write_shard(tmp_path / "shard", [record.to_bytes() for record in items])
    found = read_shard(path, DIM)
    assert len(found) == len(items)
    assert not found.faults
    for row, record in enumerate(items):
        np.testing.assert_array_equal(found.vectors[row], record.embedding)
        assert (found.ids[row].decode(), found.uris[row].decode()) == (record.id, record.uri)
        assert json.loads(found.metadata[row]) == {**record.metadata, "id": record.id}


def test_metadata_contains_no_paths(tmp_path: Path) -> None:
    _, path = write_shards(tmp_path, records(), 1)[0]
    found = read_shard(path, DIM)
    assert not any(b"photos" in found.metadata[row] for row in range(len(found)))


def test_order_keys_are_the_first_bytes_of_blake2b(tmp_path: Path) -> None:
    """They define the item order of an index, so another hash would change the indexes of existing corpora."""
    _, path = write_shards(tmp_path, records(2), 1)[0]
    # Output of `printf id0 | b2sum -l 64`, and for id1.
    assert [f"{key:016x}" for key in read_shard(path, DIM).order_keys] == ["e6ddcf533da8966e", "6b8beb9b1e06fb2a"]


def test_records_from_other_libraries_are_read(tmp_path: Path) -> None:
    """Protobuf allows lengths padded to more bytes than needed, and features in any order."""
    plain = records(2)
    lists = {
        b"uri": (b"\x0a", b"/photos/0.jpg"),
        b"metadata": (b"\x0a", b'{"album": 0}'),
        b"id": (b"\x0a", b"id0"),
        b"source": (b"\x0a", b"elsewhere"),
        b"content_hash": (b"\x0a", b"0" * 64),
        b"embedding": (b"\x12", plain[0].embedding.tobytes()),
    }

    def enclosed(tag: bytes, value: bytes, length_bytes: int) -> bytes:
        length = [len(value) >> 7 * i & 0x7F | (0x80 if i + 1 < length_bytes else 0) for i in range(length_bytes)]
        return tag + bytes(length) + value

    for length_bytes in (2, 5, 7):
        entries = b"".join(
            enclosed(
                b"\x0a",
                enclosed(b"\x0a", key, length_bytes)
                + enclosed(b"\x12", enclosed(tag, enclosed(b"\x0a", value, length_bytes), length_bytes), length_bytes),
                length_bytes,
            )
            for key, (tag, value) in lists.items()
        )
        other = enclosed(b"\x0a", entries, length_bytes)
        _, path = write_shard(tmp_path / "shard", [other, plain[1].to_bytes()])
        found = read_shard(path, DIM)
        np.testing.assert_array_equal(found.vectors, [record.embedding for record in plain])
        assert [found.metadata[row] for row in (0, 1)] == [b'{"album":0,"id":"id0"}', b'{"album":1,"id":"id1"}']


def test_a_shard_without_records_is_read(tmp_path: Path) -> None:
    _, path = write_shard(tmp_path / "shard", [])
    assert read_shard(path, DIM).vectors.shape == (0, DIM)


@pytest.mark.parametrize("cut", [1, 5, 13, 100])
def test_a_truncated_shard_is_rejected(tmp_path: Path, cut: int) -> None:
    data = write_shards(tmp_path, records(), 1)[0][1].read_bytes()
    with pytest.raises(JobError, match=r"cut: damaged TFRecord at byte \d+; embed it again"):
        parse_shard(data[:-cut], DIM, "cut")


def test_an_invalid_record_is_rejected_with_its_number(tmp_path: Path) -> None:
    payloads = [record.to_bytes() for record in records()]
    for wrong in (b"", b"\x0a\x02", payloads[2].replace(b"metadata", b"METADATA"), payloads[2][:-1]):
        _, path = write_shard(tmp_path / "shard", [*payloads[:2], wrong])
        with pytest.raises(JobError, match=r"record 2 of .*shard: .* not an embedding record"):
            read_shard(path, DIM)


def test_implausible_lengths_are_rejected() -> None:
    for length in (2**31, 2**63, 2**64 - 1, 2**64 - 16):
        with pytest.raises(JobError, match="damaged TFRecord at byte 0"):
            parse_shard(struct.pack("<Q", length) + bytes(100), DIM, "foreign")


def test_damaged_bytes_never_crash(tmp_path: Path) -> None:
    """The compiled loops read lengths from the file; any value is either read or rejected."""
    data = write_shards(tmp_path, records(), 1)[0][1].read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(2_000):
        damaged = bytearray(data)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(len(data))] = generator.randrange(256)
        try:
            parse_shard(bytes(damaged), DIM, "damaged")
        except SearchforgeError:
            refused += 1
    assert 100 < refused < 2_000


@pytest.mark.parametrize(
    ("vector", "fault"),
    [
        (np.full(DIM, np.nan), "contains NaN or infinity"),
        (np.full(DIM, np.inf), "contains NaN or infinity"),
        (np.zeros(DIM), "is all zeros"),
        (np.full(DIM, 1.0), "has length 4, expected 1"),
        (np.full(DIM, 1e30), r"has length 4e\+30, expected 1"),
        (np.ones(8) / np.sqrt(8), f"has 8 dimensions, but the manifest says {DIM}"),
        (np.ones(DIM).view(np.float32), f"has {2 * DIM} dimensions, but the manifest says {DIM}"),  # float64
        (np.ones(0), f"has 0 dimensions, but the manifest says {DIM}"),
    ],
)
def test_a_faulty_vector_is_reported_and_replaced_by_zeros(tmp_path: Path, vector: np.ndarray, fault: str) -> None:
    found = with_vector(tmp_path, vector)
    assert list(found.faults) == [3]
    assert re.match(rf"embedding of 'id3' {fault}.*embed the corpus again", found.faults[3])
    assert not found.vectors[3].any()  # so that quantizers never see NaN
    others = [record.embedding for record in records() if record.id != "id3"]
    np.testing.assert_array_equal(np.delete(found.vectors, 3, axis=0), others)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_length_may_deviate_by_the_tolerance(tmp_path: Path, sign: int) -> None:
    unit = records()[3].embedding
    within, beyond = (1 + sign * factor * NORM_TOLERANCE for factor in (0.99, 1.01))
    assert not with_vector(tmp_path, within * unit).faults
    assert "expected 1 (tolerance 0.001)" in with_vector(tmp_path, beyond * unit).faults[3]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b'{"id": "other"}', "'id2' has its own key 'id'"),
        (b'{"a": NaN}', "'id2' is not JSON that a device can read"),
        (b'{"a": "\\ud800"}', "'id2' is not JSON that a device can read"),
        (b"[1, 2, 3]", r"'id2' is '\[1, 2, 3\]', expected a JSON object"),
        (b'{"a": }', "'id2' is not JSON"),
        (b'{"a": ' + b"[" * 100_000, "'id2' is not JSON"),
    ],
)
def test_faulty_metadata_is_reported_and_left_empty(tmp_path: Path, text: bytes, fault: str) -> None:
    payloads = [record.to_bytes() for record in records()]
    payloads[2] = with_metadata_text(records()[2], text)
    found = read_shard(write_shard(tmp_path / "shard", payloads)[1], DIM)
    assert list(found.faults) == [2]
    assert re.match(rf"metadata of {fault}", found.faults[2])
    metadata = [found.metadata[row] for row in range(len(found))]
    assert metadata.pop(2) == b""
    assert all(b'"album"' in text for text in metadata)


def test_one_of_two_faults_of_a_record_is_reported(tmp_path: Path) -> None:
    record = dataclasses.replace(records(1)[0], embedding=np.zeros(DIM, np.float32), metadata={"id": "other"})
    found = read_shard(write_shard(tmp_path / "shard", [record.to_bytes()])[1], DIM)
    assert list(found.faults) == [0]
    assert "is all zeros" in found.faults[0]


def test_binary_metadata_is_rejected(tmp_path: Path) -> None:
    payload = with_metadata_text(records(1)[0], b'{"a": "\xff\xfe\x00"}')
    _, path = write_shard(tmp_path / "shard", [payload])
    with pytest.raises(JobError, match=r"record 0 of .* not an embedding record.*utf-8"):
        read_shard(path, DIM)


def test_an_id_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    payload = records(1)[0].to_bytes().replace(b"id0", b"i\xc30")
    _, path = write_shard(tmp_path / "shard", [payload])
    with pytest.raises(JobError, match=r"record 0 of .* not an embedding record.*utf-8"):
        read_shard(path, DIM)


def test_strings_can_be_taken_in_any_order_and_repeatedly() -> None:
    strings = ByteStrings.of_offsets(np.frombuffer(b"onethree", np.uint8), np.array([0, 3, 3, 8]))
    assert [strings[row] for row in range(len(strings))] == [b"one", b"", b"three"]
    joined, offsets = strings.take(np.array([2, 1, 0, 2]))
    assert (joined.tobytes(), offsets.tolist()) == (b"threeonethree", [0, 5, 5, 8, 13])
    joined, offsets = strings.take(np.empty(0, np.int64))
    assert (joined.tobytes(), offsets.tolist()) == (b"", [0])
