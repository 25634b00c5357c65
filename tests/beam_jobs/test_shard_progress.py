"""Progress of an embedding run counts the items of finished shards, at a cost that is linear in the shards."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from beam_jobs.embedding.shard_progress import report_progress
from beam_jobs.planning.shards import MAX_SHARDS, Shard
from searchforge.storage.local import LocalStorage


class ListedFiles(LocalStorage):
    """A storage that lists the given files in every folder."""

    files: list[str]

    def list_files(self, folder: str) -> list[str]:
        return self.files


@pytest.fixture
def storage(tmp_path: Path) -> ListedFiles:
    storage = ListedFiles(str(tmp_path))
    storage.files = []
    return storage


def test_the_items_of_finished_shards_are_counted(storage: ListedFiles, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shards = [Shard(index, 4, "plan") for index in range(4)]
    storage.files = [shards[0].report_name, shards[1].content_name("data", "tfrecord", b"records")]
    with report_progress(shards, [1, 20, 300, 4000], "embeddings/run", storage):
        storage.files = [shard.report_name for shard in shards[:3]]
    resumed, ended = caplog.messages
    assert resumed == "  1 of 4 shards are already done"
    assert ended.startswith("  embed: 320/4320 in ")


def test_the_largest_number_of_shards_takes_no_time(storage: ListedFiles) -> None:
    shards = [Shard(index, MAX_SHARDS, "plan") for index in range(MAX_SHARDS)]
    start = time.process_time()
    with report_progress(shards, [1] * MAX_SHARDS, "embeddings/run", storage):
        storage.files = [shard.report_name for shard in shards[::2]]
    assert time.process_time() - start < 1
