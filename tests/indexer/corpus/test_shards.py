"""Shards are opened and processed in order, and corpora that cannot be indexed are rejected."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from indexer.corpus.corpus_scan import scan_corpus
from indexer.corpus.shard_reader import read_shard
from indexer.corpus.shards import Shard, map_in_order, open_corpus, require_unique_ids, require_valid_records
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError, UsageError
from tests.indexer.shards import records, workspace_with_encoder, write_shards
from tests.indexer.tiny_corpus import DIM, commit_embeddings
from tests.infra.memory_storage import MemoryStorage


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_encoder(tmp_path)


def shared_keys(shards: Sequence[Shard]) -> np.ndarray:
    return require_unique_ids((read_shard(path, DIM).order_keys for _, path in shards), shards, DIM)


def test_an_empty_corpus_is_rejected(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="contain no items"):
        open_corpus(workspace, commit_embeddings(workspace, [], shards=1))


def test_a_damaged_shard_is_rejected(workspace: Workspace, tmp_path: Path) -> None:
    manifest = commit_embeddings(workspace, records(), shards=1)
    assert [info for info, _ in open_corpus(workspace, manifest)] == list(manifest.shards)
    shard = next(tmp_path.glob("embeddings/corpus/*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(JobError, match="SHA-256"):
        open_corpus(workspace, manifest)


def test_shards_from_another_encoder_are_rejected(workspace: Workspace) -> None:
    base = commit_embeddings(workspace, records(), "base", fingerprint="e" * 64)
    manifest = commit_embeddings(workspace, records(2), "next")
    mixed = manifest.model_dump()
    mixed["shards"] = [*mixed["shards"], *({**shard.model_dump(), "run": "base"} for shard in base.shards)]
    mixed |= {"inputs": 8, "reused": 6}
    with pytest.raises(
        UsageError, match=r"next are from encoder f{64}, but reuse shards of embeddings base from encoder e{64}"
    ):
        open_corpus(workspace, Manifest.model_validate(mixed))


def test_an_error_shows_the_first_fault_of_live_records_and_their_number() -> None:
    faults = {1: "first", 4: "third", 3: "second"}
    with pytest.raises(UsageError, match=re.escape("second (2 of 9 records of shard cannot be indexed)")):
        require_valid_records(faults, 9, dead=(1,), name="shard")
    require_valid_records(faults, 9, dead=(4, 1, 3), name="shard")
    require_valid_records({}, 9, dead=(), name="shard")


@pytest.mark.parametrize("shards", [1, 2])
def test_a_duplicate_id_shows_both_sources_unless_one_is_dead(tmp_path: Path, shards: int) -> None:
    items = records()
    items[4] = dataclasses.replace(items[4], id="id1")
    files = write_shards(tmp_path, items, shards)
    with pytest.raises(
        UsageError, match=r"'id1' .* twice in the corpus, from /photos/(1|4).jpg and from /photos/(1|4).jpg"
    ):
        shared_keys(files)
    info, path = files[0]
    files[0] = info.model_copy(update={"dead": (4 // shards,)}), path
    assert not len(shared_keys(files))


def test_different_ids_with_equal_order_keys_are_not_duplicates(tmp_path: Path) -> None:
    keys = np.array([7, 8, 9, 7, 8, 10], np.uint64)
    assert require_unique_ids([keys], write_shards(tmp_path, records(), 1), DIM).tolist() == [7, 8]


def test_a_corpus_without_live_records_has_no_duplicates(tmp_path: Path) -> None:
    assert not len(shared_keys([]))
    assert not len(shared_keys(write_shards(tmp_path, records(1), 2, dead=["id0"])))


@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_the_order_of_the_items(threads: int) -> None:
    """Even if later items finish first: here, each item waits for the next one."""
    done = [threading.Event() for _ in range(9)]

    def work(item: int) -> int:
        if threads > 1 and item % 2 == 0 and item + 1 < len(done):
            assert done[item + 1].wait(10)
        done[item].set()
        return item * item

    assert list(map_in_order(work, range(9), threads)) == [item * item for item in range(9)]
    assert list(map_in_order(work, [], threads)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_at_most_one_result_per_thread_is_pending(threads: int) -> None:
    taken = 0

    def items() -> Sequence[int]:
        nonlocal taken
        for item in range(20):
            taken += 1
            yield item

    for done, _ in enumerate(map_in_order(str, items(), threads)):
        assert taken - done <= threads + 1


def test_an_error_stops_the_iteration() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise JobError("damaged")
        return item

    found = []
    with pytest.raises(JobError, match="damaged"):
        found.extend(map_in_order(work, iter(range(1_000_000)), 2))


def test_shards_can_be_read_from_a_bucket_without_local_copies(tmp_path: Path) -> None:
    workspace = workspace_with_encoder(tmp_path / "copies", MemoryStorage())
    manifest = commit_embeddings(workspace, records(9), shards=3)
    shards = open_corpus(workspace, manifest, download=False)
    scan = scan_corpus(shards, DIM, 4, 0, np.empty((0, DIM), np.float32), 1)
    assert list(tmp_path.rglob("*.tfrecord")) == []
    downloaded = scan_corpus(open_corpus(workspace, manifest), DIM, 4, 0, np.empty((0, DIM), np.float32), 1)
    assert len(list(tmp_path.rglob("*.tfrecord"))) == 3
    assert np.array_equal(scan.sample, downloaded.sample)


@pytest.mark.parametrize(("damage", "message"), [(b"other", "has SHA-256"), (None, "is missing; embed the corpus")])
def test_a_shard_in_a_bucket_that_is_damaged_or_missing_is_rejected(
    tmp_path: Path, damage: bytes | None, message: str
) -> None:
    workspace = workspace_with_encoder(tmp_path, MemoryStorage())
    manifest = commit_embeddings(workspace, records(), shards=1)
    ((info, file),) = open_corpus(workspace, manifest, download=False)
    path = f"embeddings/corpus/{info.name}"
    workspace.storage.delete(path)
    if damage:
        workspace.storage.write(path, damage)
    with pytest.raises(JobError, match=f"memory/{path} {message}"):
        read_shard(file, DIM)
