"""Embedding runs are read as batches of columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from searchforge.artifacts.record_batches import ROWS, RecordBatch, read_batches
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.errors import JobError
from searchforge.protobuf import bytes_field, bytes_values
from tests.indexer.shards import records, workspace_with_encoder
from tests.indexer.tiny_corpus import commit_embeddings, commit_on


def _rows(batches: list[RecordBatch]) -> list[tuple[object, ...]]:
    return [
        (*row[:-1], row[-1].tobytes())
        for batch in batches
        for row in zip(batch.ids, batch.uris, batch.content_hashes, batch.metadata, batch.vectors, strict=True)
    ]


def test_batches_hold_the_live_records_of_all_shards_in_order(tmp_path: Path) -> None:
    workspace = workspace_with_encoder(tmp_path)
    long = {"text": "a" * 300 + "é\n", "list": [1, None]}
    items = [*records(20), EmbeddingRecord("", np.ones(16, np.float32), "", "", long, "v" * 200, "1+2@x.tar")]
    base = commit_embeddings(workspace, items, shards=2)
    manifest = commit_on(workspace, base, "second", removed={"id0", "id3"}, added=[])
    batches = list(read_batches(workspace, manifest))
    expected = [item for first in (0, 1) for item in items[first::2] if item.id not in ("id0", "id3")]
    assert [id for batch in batches for id in batch.ids] == [item.id for item in expected]
    assert [id for batch in batches for id in batch.byte_ranges if id] == ["1+2@x.tar"]
    assert [id for batch in batches for id in batch.versions if id] == ["v" * 200]
    vectors = np.concatenate([batch.vectors for batch in batches])
    assert vectors.tobytes() == np.stack([item.embedding for item in expected]).tobytes()
    assert batches[0].metadata[-1] == '{"list": [1, null], "text": "' + "a" * 300 + 'é\\n"}'


def test_batches_are_bounded(tmp_path: Path) -> None:
    workspace = workspace_with_encoder(tmp_path)
    manifest = commit_embeddings(workspace, records(ROWS + 1), shards=1)
    assert [len(batch.ids) for batch in read_batches(workspace, manifest)] == [ROWS, 1]


def test_records_of_another_writer_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_order(record: EmbeddingRecord) -> bytes:
        (features,) = bytes_values(original(record), 1)
        return bytes_field(1, b"".join(bytes_field(1, entry) for entry in reversed([*bytes_values(features, 1)])))

    items, original = records(5), EmbeddingRecord.to_bytes
    same = commit_embeddings(workspace := workspace_with_encoder(tmp_path), items, "same")
    monkeypatch.setattr(EmbeddingRecord, "to_bytes", other_order)
    other = commit_embeddings(workspace, items, "other")
    assert _rows(list(read_batches(workspace, other))) == _rows(list(read_batches(workspace, same)))


def test_another_dimension_is_refused(tmp_path: Path) -> None:
    workspace = workspace_with_encoder(tmp_path)
    manifest = commit_embeddings(workspace, records(3), dim=8)
    with pytest.raises(JobError, match="16 dimensions; expected 8"):
        list(read_batches(workspace, manifest))
