"""Several runs of the same corpus at once all end well, and no late writer changes what a manifest vouches for."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.embed_images import embed_images
from beam_jobs.planning.shards import Shard, remove_temporary_files, write_records
from searchforge.artifacts.manifest import verified_shards
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.storage.files import atomic_write
from searchforge.storage.local import LocalStorage
from tests.beam_jobs.photos import draw_photos, embed_config, png, shard_bytes
from tests.tiny_bundle import write_bundle

_PROCESSES = 3


def _embed(config: Config, delay: float) -> None:
    time.sleep(delay)
    embed_images(config, "tiny")


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.proof)])
@pytest.mark.parametrize("incremental", [False, True])
def test_runs_of_the_same_corpus_at_once_all_end_well(incremental: bool, rounds: int, tmp_path: Path) -> None:
    generator, context = random.Random(rounds), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["beam_jobs.embed", "ai_edge_litert.interpreter", __name__])
    photos, origin = draw_photos(tmp_path / "photos", 40), Workspace(str(tmp_path / "origin"))
    write_bundle(origin)
    if incremental:
        embed_images(embed_config(origin, photos), "tiny")
        (photos / "new.png").write_bytes(png(100))
        (photos / "00.png").unlink()
    alone = Workspace(str(shutil.copytree(origin.root, tmp_path / "alone")))
    start = time.monotonic()
    expected = embed_images(embed_config(alone, photos), "tiny")
    seconds = time.monotonic() - start
    for round in range(rounds):
        workspace = Workspace(str(shutil.copytree(origin.root, tmp_path / f"round-{round}")))
        config = embed_config(workspace, photos)
        delays = [generator.uniform(0, seconds) for _ in range(_PROCESSES)]
        processes = [context.Process(target=_embed, args=(config, delay)) for delay in delays]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * _PROCESSES
        manifest = embed_images(config, "tiny")
        assert (manifest.id, manifest.records) == (expected.id, expected.records)
        assert len(list(verified_shards(workspace, manifest))) == len(manifest.shards)
        assert shard_bytes(workspace, manifest) == shard_bytes(alone, expected)
        shutil.rmtree(workspace.root)


def test_a_late_writer_of_a_shard_does_not_replace_it(tmp_path: Path) -> None:
    """The later one has other results, as on another kind of CPU, and another reject."""
    storage, shard = LocalStorage(str(tmp_path)), Shard(0, 1, "plan")

    def write(value: float) -> tuple[str, str]:
        record = EmbeddingRecord("a", np.full(4, value, np.float32), "a.png", "0")
        info, rejects = write_records(storage, "run", shard, [record], [{"id": "b", "reason": f"{value}"}])
        return info.name, rejects

    first = write(0.5)
    written = [storage.read(f"run/{name}") for name in first]
    assert write(0.5) == first
    assert not {*write(0.25)} & {*first}
    assert [storage.read(f"run/{name}") for name in first] == written


def test_a_run_that_finishes_spares_what_another_one_is_writing(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("run/plan", b"plan")
    with atomic_write(tmp_path / "run" / "report.json") as file:
        file.write(b"{}")
        remove_temporary_files(storage, "run", ())
    assert storage.list_files("run") == ["report.json"]
