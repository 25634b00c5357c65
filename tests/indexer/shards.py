"""Creates embedding records and shard files for the indexer's tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexer.corpus.shards import Shard
from searchforge.artifacts.manifest import ShardInfo
from searchforge.artifacts.records import EmbeddingRecord, write_tfrecords
from searchforge.artifacts.workspace import Workspace
from searchforge.hashing import sha256_file
from searchforge.storage.base import Storage
from tests.indexer.tiny_corpus import DIM
from tests.indexer.tiny_encoder import PREPROCESSING, unit


def records(count: int = 6, seed: int = 0) -> list[EmbeddingRecord]:
    """Returns records `id0`, `id1` ... with random vectors and their number as metadata."""
    vectors = unit(np.random.default_rng(seed).normal(size=(count, DIM)))
    return [EmbeddingRecord(f"id{i}", vectors[i], f"/photos/{i}.jpg", "0" * 64, {"album": i}) for i in range(count)]


def with_metadata_text(record: EmbeddingRecord, text: bytes) -> bytes:
    """Returns a serialized record with arbitrary metadata bytes; short ones are padded with spaces."""
    text = text.ljust(len('{"x": ""}'))
    stand_in: dict[str, Any] = {"x": "a" * (len(text) - len('{"x": ""}'))}
    fields = {**vars(record), "metadata": stand_in}
    written = EmbeddingRecord(**fields).to_bytes()
    return written.replace(b'{"x": "%s"}' % stand_in["x"].encode(), text)


def write_shard(path: Path, payloads: Sequence[bytes], dead: tuple[int, ...] = ()) -> Shard:
    """Writes serialized records as one shard file."""
    with path.open("wb") as file:
        write_tfrecords(file, payloads)
    info = ShardInfo(
        name="data-00000-of-00001.tfrecord",
        count=len(payloads),
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        dead=dead,
    )
    return info, path


def write_shards(folder: Path, items: Sequence[EmbeddingRecord], count: int, dead: Sequence[str] = ()) -> list[Shard]:
    """Writes `count` shards; records whose id is in `dead` are dead."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for index in range(count):
        part = items[index::count]
        rows = tuple(row for row, record in enumerate(part) if record.id in dead)
        shards.append(write_shard(folder / f"{index}.tfrecord", [record.to_bytes() for record in part], rows))
    return shards


def workspace_with_encoder(root: Path, storage: Storage | None = None) -> Workspace:
    """Returns a workspace with encoder `tiny`, which commit_embeddings needs; it has no models."""
    workspace = Workspace(str(root), storage)
    info = {"id": "tiny", "fingerprint": "f", "preprocessing": PREPROCESSING, "dim": DIM}
    info |= {"image_tower": "", "text_tower": "", "sequence_length": 1, "files": {}, "report": {}}
    with workspace.create("encoders", "tiny") as staging:
        staging.commit(info)
    return workspace
