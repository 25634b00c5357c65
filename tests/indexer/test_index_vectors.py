"""What the indexer takes from an embedding run, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.vectors import Corpus, load_corpus
from searchforge.errors import JobError, UsageError
from searchforge.manifest import Manifest
from searchforge.records import EmbeddingRecord
from searchforge.workspace import Workspace
from tests.indexer.tiny_corpus import DIM, commit_embeddings
from tests.indexer.tiny_encoder import PREPROCESSING, unit

Load = Callable[..., Corpus]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Commits records as an embedding run and loads them."""
    workspace = Workspace(str(tmp_path))
    info = {"id": "tiny", "fingerprint": "f", "preprocessing": PREPROCESSING, "dim": DIM}
    info |= {"image_tower": "", "text_tower": "", "sequence_length": 1, "files": {}, "report": {}}
    with workspace.create("encoders", "tiny") as staging:
        staging.commit(info)

    def commit_and_load(records: list[EmbeddingRecord], **options: Any) -> Corpus:
        id = f"run{len(workspace.ids('embeddings'))}"
        manifest = commit_embeddings(workspace, records, id, **options)
        return load_corpus(workspace, manifest)

    return commit_and_load


def records(count: int = 6) -> list[EmbeddingRecord]:
    vectors = unit(np.random.default_rng(0).normal(size=(count, DIM)))
    return [EmbeddingRecord(f"id{i}", vectors[i], f"/photos/{i}.jpg", "0" * 64, {"album": i}) for i in range(count)]


def with_vector(vector: np.ndarray) -> list[EmbeddingRecord]:
    found = records()
    found[3] = dataclasses.replace(found[3], embedding=vector.astype(np.float32))
    return found


def test_vectors_ids_and_metadata_belong_together_however_they_are_sharded(load: Load) -> None:
    expected = {record.id: record for record in records()}
    one, three = load(records(), shards=1), load(list(reversed(records())), shards=3)
    assert one.ids == three.ids == sorted(expected)
    np.testing.assert_array_equal(one.vectors, three.vectors)
    assert one.device_metadata == three.device_metadata
    for id, vector, metadata in zip(one.ids, one.vectors, one.device_metadata, strict=True):
        np.testing.assert_array_equal(vector, expected[id].embedding)
        assert json.loads(metadata) == {"id": id, "album": expected[id].metadata["album"]}


def test_the_device_is_not_told_where_images_are(load: Load) -> None:
    assert not any(b"photos" in metadata for metadata in load(records()).device_metadata)


@pytest.mark.parametrize(
    ("vector", "fault"),
    [
        (np.full(DIM, np.nan), "NaN or infinity"),
        (np.full(DIM, np.inf), "NaN or infinity"),
        (np.zeros(DIM), "all zeros"),
        (np.full(DIM, 1.0), "not of length 1"),
    ],
)
def test_a_faulty_vector_is_refused_by_its_id(load: Load, vector: np.ndarray, fault: str) -> None:
    with pytest.raises(UsageError, match=rf"1 of 6 embeddings .*{fault}.*'id3'"):
        load(with_vector(vector))


def test_a_vector_of_another_dimension_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match=r"'id3' has 8 dimensions, .* says 16"):
        load(with_vector(np.ones(8) / np.sqrt(8)))


def test_a_duplicate_id_shows_both_sources(load: Load) -> None:
    found = records()
    found[4] = dataclasses.replace(found[4], id="id1")
    with pytest.raises(UsageError, match=r"'id1' .* twice, from /photos/\d.jpg and from /photos/\d.jpg"):
        load(found)


def test_an_empty_corpus_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match="hold no images"):
        load([], shards=1)


def test_metadata_may_not_name_another_id(load: Load) -> None:
    found = records()
    found[2] = dataclasses.replace(found[2], metadata={"id": "other"})
    with pytest.raises(UsageError, match="'id2' has a key 'id' of its own"):
        load(found)


def test_a_damaged_shard_is_refused(load: Load, tmp_path: Path) -> None:
    load(records(), shards=1)
    shard = next(tmp_path.glob("embeddings/run0/*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)
    manifest = json.loads((shard.parent / "MANIFEST.json").read_text())
    with pytest.raises(JobError, match="SHA-256"):
        load_corpus(Workspace(str(tmp_path)), Manifest.model_validate(manifest))
