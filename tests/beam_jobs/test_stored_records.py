"""Records of earlier runs are read by their byte ranges: few requests for many records, few bytes for few."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.embedding.stored_records import MAX_GAP_BYTES, MAX_READ_BYTES, read_records
from beam_jobs.planning.shards import RecordLocation
from searchforge.artifacts.records import TFRECORD_FRAMING, TFRECORD_HEADER, EmbeddingRecord, write_tfrecords
from searchforge.errors import JobError
from searchforge.storage.local import LocalStorage


class _CountingStorage(LocalStorage):
    """Records the reads.

    Attributes:
      reads: Path and number of bytes of each read.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.reads: list[tuple[str, int]] = []

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        data = super().read(path, offset, size)
        self.reads.append((path, len(data)))
        return data


@pytest.fixture
def storage(tmp_path: Path) -> _CountingStorage:
    return _CountingStorage(str(tmp_path))


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def _write(storage: LocalStorage, run: str, count: int, dim: int = 256) -> dict[RecordLocation, bytes]:
    """Writes a shard of random records; returns each record's location and bytes."""
    vectors = np.random.default_rng(count).normal(size=(count, dim)).astype(np.float32)
    payloads = [EmbeddingRecord(f"{row:06}", vector, "uri", "hash").to_bytes() for row, vector in enumerate(vectors)]
    buffer = io.BytesIO()
    write_tfrecords(buffer, payloads)
    name = "data-00000-of-00001.tfrecord"
    storage.write(f"embeddings/{run}/{name}", buffer.getvalue())
    found, position = {}, 0
    for payload in payloads:
        found[RecordLocation(run, name, position + TFRECORD_HEADER, len(payload))] = payload
        position += len(payload) + TFRECORD_FRAMING
    return found


def _bytes(records: dict[RecordLocation, EmbeddingRecord]) -> dict[RecordLocation, bytes]:
    return {location: record.to_bytes() for location, record in records.items()}


def test_any_selection_of_records_is_read(storage: _CountingStorage, pool: Executor) -> None:
    written = {**_write(storage, "a", 700), **_write(storage, "b", 300)}
    for seed in range(20):
        rng = random.Random(seed)
        wanted = rng.sample(sorted(written), rng.choice([0, 1, 5, 200, 1000]))
        found = read_records(storage, wanted + wanted[:3], pool)
        assert _bytes(found) == {location: written[location] for location in wanted}


def test_few_records_take_few_bytes(storage: _CountingStorage, pool: Executor) -> None:
    written = _write(storage, "a", 2000)
    _write(storage, "b", 100)
    locations = sorted(written)
    wanted = [locations[0], locations[1000], locations[1999]]
    read_records(storage, wanted, pool)
    assert [size for _, size in storage.reads] == [location.size + TFRECORD_FRAMING for location in wanted]
    assert {path for path, _ in storage.reads} == {"embeddings/a/data-00000-of-00001.tfrecord"}


def test_many_records_take_few_reads(storage: _CountingStorage, pool: Executor) -> None:
    written = _write(storage, "a", 4000, dim=512)
    locations = sorted(written)
    total = sum(location.size + TFRECORD_FRAMING for location in locations)
    for step in (1, 8):
        assert step * total / len(locations) < MAX_GAP_BYTES
        storage.reads.clear()
        read_records(storage, locations[::step], pool)
        assert len(storage.reads) <= -(-total // MAX_READ_BYTES) + 1
        assert sum(size for _, size in storage.reads) <= total


@pytest.mark.parametrize("place", ["header", "payload", "checksum"])
def test_a_damaged_record_is_reported(storage: _CountingStorage, pool: Executor, place: str) -> None:
    written = sorted(_write(storage, "a", 3))
    first, damaged, last = written
    path = f"embeddings/a/{damaged.name}"
    data = bytearray(storage.read(path))
    data[damaged.offset + {"header": -TFRECORD_HEADER, "payload": 300, "checksum": damaged.size}[place]] ^= 1
    storage.write(path, bytes(data))
    with pytest.raises(JobError, match=f"{path} cannot be read .*damaged TFRecord.*embed.reuse_from=none"):
        read_records(storage, written, pool)
    assert read_records(storage, [first, last], pool).keys() == {first, last}


def test_a_missing_or_truncated_file_is_reported(storage: _CountingStorage, pool: Executor) -> None:
    written = sorted(_write(storage, "a", 3))
    path = f"embeddings/a/{written[0].name}"
    storage.write(path, storage.read(path)[:-5])
    with pytest.raises(JobError, match=rf"{path} cannot be read \(\d+ bytes at byte 0, expected \d+\)"):
        read_records(storage, written, pool)
    storage.delete(path)
    with pytest.raises(JobError, match=f"{path} cannot be read"):
        read_records(storage, written, pool)
