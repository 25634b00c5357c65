"""A repeatedly killed job ends with the shards of an uninterrupted one and repeats no finished shard."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from beam_jobs.embed_images import embed_images
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from tests.beam_jobs.photos import draw_photos, embed_config, png, shard_bytes
from tests.tiny_bundle import write_bundle

_SHARDS = 12

_MAX_KILL_TIME = 1.2
"""Latest time of a kill, as a multiple of the duration of an uninterrupted run, so that some runs finish."""


def _embed(config: Config) -> None:
    embed_images(config, "tiny")


def _run(config: Config, kill_after: float | None = None) -> bool:
    """Runs the job in a child process; returns whether it was killed before it ended."""
    # The fork server has imported everything, so that a child starts within milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["beam_jobs.embed", "ai_edge_litert.interpreter", __name__])
    process = context.Process(target=_embed, args=(config,))
    process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _finished(workspace: Workspace) -> dict[Path, int]:
    """Returns the times at which the finished shards of unfinished runs were finished."""
    return {path: path.stat().st_mtime_ns for path in Path(workspace.root).glob("embeddings/*/done-*.json")}


def _kill_until_done(workspace: Workspace, config: Config, seconds: float, generator: random.Random) -> int:
    """Kills the job at random times until a run finishes; returns the number of kills.

    The time limit grows with every kill, so that a run also finishes on a machine that has become busier.

    Args:
      seconds: Duration of an uninterrupted run.
    """
    finished: dict[Path, int] = {}
    runs = len(workspace.ids("embeddings"))
    for kills in itertools.count():
        killed = _run(config, generator.uniform(0, _MAX_KILL_TIME * seconds * 1.1**kills))
        now = _finished(workspace)
        if len(workspace.ids("embeddings")) > runs:
            return kills
        assert killed
        assert finished.items() <= now.items(), "a finished shard was repeated"
        finished = now
    raise AssertionError


def _compare(photos: Path, tmp_path: Path, kills: int, base: Path | None = None) -> Manifest:
    """Compares killed runs in fresh workspaces, until there were `kills` kills, with an uninterrupted run."""
    origin = base or tmp_path / "origin"
    if base is None:
        write_bundle(Workspace(str(origin)))
    generator, total = random.Random(0), 0
    uninterrupted = Workspace(str(shutil.copytree(origin, tmp_path / "uninterrupted")))
    config = embed_config(uninterrupted, photos, embed__shards=_SHARDS)
    _run(config)  # the first run also starts the fork server
    shutil.rmtree(uninterrupted.root)
    shutil.copytree(origin, uninterrupted.root)
    start = time.monotonic()
    _run(config)
    seconds = time.monotonic() - start
    expected = embed_images(config, "tiny")
    times = {"created", "seconds"}
    for round in itertools.count():
        workspace = Workspace(str(shutil.copytree(origin, tmp_path / f"killed-{round}")))
        config = embed_config(workspace, photos, embed__shards=_SHARDS)
        total += _kill_until_done(workspace, config, seconds, generator)
        manifest = embed_images(config, "tiny")
        assert manifest.model_dump(exclude=times) == expected.model_dump(exclude=times)
        shards = shard_bytes(workspace, manifest)
        assert shards == shard_bytes(uninterrupted, expected)
        files = {path.name for path in workspace.local("embeddings", manifest.id).iterdir()}
        assert files - {"report.json"} <= {"MANIFEST.json", *shards, *manifest.rejects} | _leftovers(files)
        shutil.rmtree(workspace.root)
        if total >= kills:
            return manifest
    raise AssertionError


def _leftovers(names: set[str]) -> set[str]:
    """Returns the harmless files that a run leaves if it is killed after its commit and before its cleanup."""
    return {name for name in names if name.startswith(("plan-", "done-", ".", "PLAN"))}


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.proof)])
def test_killed_jobs_end_with_the_shards_of_an_uninterrupted_one(tmp_path: Path, kills: int) -> None:
    photos = draw_photos(tmp_path / "photos", 96)
    (photos / "bad.png").write_bytes(b"not an image")
    manifest = _compare(photos, tmp_path, kills)
    assert (manifest.inputs, manifest.embedded, manifest.rejected) == (97, 96, 1)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.proof)])
def test_killed_incremental_jobs_end_with_the_same_shards(tmp_path: Path, kills: int) -> None:
    photos, origin = draw_photos(tmp_path / "photos", 40), Workspace(str(tmp_path / "base"))
    write_bundle(origin)
    embed_images(embed_config(origin, photos), "tiny")
    for index in range(60):
        (photos / f"new-{index}.png").write_bytes(png(1000 + index))
    (photos / "00.png").unlink()
    manifest = _compare(photos, tmp_path, kills, base=Path(origin.root))
    assert (manifest.inputs, manifest.embedded, manifest.reused) == (99, 60, 39)
