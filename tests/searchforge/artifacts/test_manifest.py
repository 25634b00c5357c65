"""The counts of a manifest add up, and the shards it lists are verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from searchforge.artifacts.manifest import Manifest, ShardInfo, read_shards
from searchforge.artifacts.records import EmbeddingRecord, write_tfrecords
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_file

NAME = "data-00000-of-00001.tfrecord"


def _manifest(path: Path, **changes: Any) -> Manifest:
    shard = ShardInfo(name=NAME, count=2, bytes=path.stat().st_size, sha256=sha256_file(path))
    values = {
        "id": "run",
        "encoder": "encoder",
        "fingerprint": "aaaa",
        "preprocessing": "decode|resize(8,8,bilinear)|scale(-1,1)",
        "dim": 4,
        "source": "photos",
        "inputs": 3,
        "embedded": 2,
        "reused": 0,
        "rejected": 1,
        "rejected_by_reason": {"empty": 1},
        "shards": (shard,),
        "rejects": ("rejects-00000-of-00001.jsonl",),
        "seconds": 1.0,
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "embeddings" / "run" / NAME
    path.parent.mkdir(parents=True)
    (path.parent / "MANIFEST.json").write_text("{}")
    records = [EmbeddingRecord(str(index), np.ones(4, np.float32), "", "") for index in range(2)]
    with path.open("wb") as file:
        write_tfrecords(file, (record.to_bytes() for record in records))
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path))


def test_the_listed_shards_are_read(workspace: Workspace, shard: Path) -> None:
    assert [record.id for record in read_shards(workspace, _manifest(shard))] == ["0", "1"]


def test_dead_records_are_skipped(workspace: Workspace, shard: Path) -> None:
    (info,) = _manifest(shard).shards
    manifest = _manifest(shard, shards=(info.model_copy(update={"dead": (0,)}),), embedded=1, inputs=2)
    assert [record.id for record in read_shards(workspace, manifest)] == ["1"]


def test_shards_of_earlier_runs_are_read(workspace: Workspace, shard: Path) -> None:
    (info,) = _manifest(shard).shards
    later = _manifest(shard, id="later", shards=(info.model_copy(update={"run": "run"}),))
    assert [record.id for record in read_shards(workspace, later)] == ["0", "1"]
    (shard.parent / "MANIFEST.json").unlink()
    with pytest.raises(JobError, match="embeddings run, whose shards embeddings later reuse, are missing"):
        list(read_shards(workspace, later))


@pytest.mark.parametrize("dead", [(2,), (-1,), (0, 0)])
def test_invalid_dead_records_are_rejected(dead: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        ShardInfo(name=NAME, count=2, bytes=0, sha256="", dead=dead)


@pytest.mark.parametrize(
    "changes",
    [{"inputs": 4}, {"embedded": 1, "inputs": 2}, {"rejected_by_reason": {}}, {"rejected_by_reason": {"empty": 2}}],
)
def test_counts_that_do_not_add_up_are_rejected(shard: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _manifest(shard, **changes)


def test_a_changed_shard_is_rejected(workspace: Workspace, shard: Path) -> None:
    manifest = _manifest(shard)
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(JobError, match="in the manifest; delete"):
        list(read_shards(workspace, manifest))


def test_a_missing_shard_is_rejected(workspace: Workspace, shard: Path) -> None:
    manifest = _manifest(shard)
    shard.unlink()
    with pytest.raises(JobError, match="is missing, but the manifest of embeddings run lists it"):
        list(read_shards(workspace, manifest))


def test_the_summary_counts_every_input(shard: Path) -> None:
    changes = {"id": "abc", "inputs": 1002, "rejected": 1000, "rejected_by_reason": {"empty": 999, "missing": 1}}
    counts = "1,002 texts: 2 embedded, 0 reused, 1,000 rejected (999 empty, 1 missing)"
    assert _manifest(shard, modality="texts", **changes).summary == f"embeddings/abc of {counts}; 1.0 s"
    assert _manifest(shard, metadata_errors=1).counts.endswith("1 rejected (1 empty); 1 without unreadable metadata")


def test_a_shard_name_cannot_leave_the_folder(shard: Path) -> None:
    with pytest.raises(ValidationError):
        ShardInfo(name="../../etc/passwd", count=0, bytes=0, sha256="")


def test_another_encoder_is_rejected_with_both_fingerprints(shard: Path) -> None:
    _manifest(shard).require_fingerprint("aaaa", "encoder x")
    with pytest.raises(UsageError, match=r"aaaa.*encoder x is encoder bbbb"):
        _manifest(shard).require_fingerprint("bbbb", "encoder x")
