"""Embedding records are tf.train.Example messages in TFRecord files, byte for byte as TensorFlow writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from searchforge.artifacts.records import EmbeddingRecord, read_embeddings, read_tfrecords, write_tfrecords
from searchforge.errors import JobError


def _record(index: int = 0) -> EmbeddingRecord:
    embedding = np.random.default_rng(index).standard_normal(128).astype(np.float32)
    return EmbeddingRecord(f"überfoto {index}.jpg", embedding, f"/photos/{index}.jpg", "ab" * 32, {"note": "x" * index})


def _assert_equal(first: EmbeddingRecord, second: EmbeddingRecord) -> None:
    np.testing.assert_array_equal(first.embedding, second.embedding)
    assert (first.id, first.uri, first.content_hash, first.metadata) == (
        second.id,
        second.uri,
        second.content_hash,
        second.metadata,
    )


@pytest.mark.parametrize("index", [0, 1, 200, 20_000])
def test_a_record_survives_the_round_trip(index: int) -> None:
    _assert_equal(EmbeddingRecord.from_bytes(_record(index).to_bytes()), _record(index))


def test_tensorflow_reads_records_and_writes_the_same_bytes(tmp_path: Path) -> None:
    import tensorflow as tf

    path = tmp_path / "shard.tfrecord"
    records = [_record(index) for index in range(3)]
    with path.open("wb") as file:
        write_tfrecords(file, (record.to_bytes() for record in records))
    for payload, record in zip(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), records, strict=True):
        example = tf.train.Example.FromString(payload)
        np.testing.assert_array_equal(example.features.feature["embedding"].float_list.value, record.embedding)
        assert example.features.feature["id"].bytes_list.value[0].decode() == record.id
        assert example.SerializeToString(deterministic=True) == record.to_bytes()


def test_records_written_by_tensorflow_are_read(tmp_path: Path) -> None:
    import tensorflow as tf

    path = tmp_path / "shard.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(_record(5).to_bytes())
    (read,) = read_embeddings(path)
    _assert_equal(read, _record(5))


@pytest.mark.parametrize("position", [0, 9, 20, -1])
def test_a_flipped_bit_is_detected(tmp_path: Path, position: int) -> None:
    path = tmp_path / "shard.tfrecord"
    with path.open("wb") as file:
        write_tfrecords(file, [_record().to_bytes()])
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(JobError, match="damaged TFRecord"):
        list(read_tfrecords(path))


def test_a_truncated_file_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "shard.tfrecord"
    with path.open("wb") as file:
        write_tfrecords(file, [_record().to_bytes()])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(JobError, match="damaged TFRecord"):
        list(read_tfrecords(path))


@pytest.mark.parametrize("data", [b"", b"\x0a\x05abc", b"\xff" * 20, b"\x0a\x00", b"\x08\x01"])
def test_other_bytes_are_not_a_record(data: bytes) -> None:
    with pytest.raises(JobError, match="not an embedding record"):
        EmbeddingRecord.from_bytes(data)


def test_an_embedding_must_be_a_float32_vector() -> None:
    with pytest.raises(ValueError, match=r"float64\[4\]"):
        EmbeddingRecord("a", np.zeros(4), "", "")  # type: ignore[arg-type]
