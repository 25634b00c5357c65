"""An index command that is killed at any moment and then run again writes the same files as an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from indexer.device.worker import MODULE
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.hashing import sha256_file
from searchforge.processes import isolated
from tests.indexer.tiny_corpus import commit_embeddings, make_corpus
from tests.infra.forked import fork


@pytest.mark.parametrize(("kills", "kills_per_copy"), [(2, 2), pytest.param(10, 5, marks=pytest.mark.proof)])
def test_a_killed_command_that_is_run_again_writes_the_same_files(
    tmp_path: Path, kills: int, kills_per_copy: int
) -> None:
    """Kills runs of a workspace up to `kills_per_copy` times before one may finish, until `kills` in total."""
    corpus = make_corpus(tmp_path / "origin", count=100, data__captions=[])
    commit_embeddings(corpus.workspace, corpus.records, "many-shards", shards=12)
    origin = Path(corpus.workspace.root)
    isolated.Session(MODULE).close()  # starts the fork server that forked processes share
    undisturbed = _copy(corpus.config, origin, tmp_path / "undisturbed")
    start = time.monotonic()
    _run(undisturbed)
    seconds = time.monotonic() - start
    expected = _files(undisturbed)
    assert "index.ldb" in expected
    generator, killed = random.Random(0), 0
    while killed < kills:
        config = _copy(corpus.config, origin, tmp_path / f"killed-{killed}")
        for _ in range(kills_per_copy):
            if not _run(config, generator.uniform(0, seconds)):
                break
            killed += 1
        _run(config)
        assert _files(config) == expected
        assert list((Path(config.workspace) / ".staging").iterdir()) == []
        left = {path.name.partition(".")[0] for path in (Path(config.workspace) / "cache/parts").glob("*/*")}
        assert left == {shard["sha256"] for shard in _shards(config)}
        shutil.rmtree(config.workspace)


def _run(config: Config, kill_after: float | None = None) -> bool:
    """Builds in a separate process; returns whether it was killed before it finished."""
    process = fork(lambda: build_index(config, "many-shards"), Path(f"{config.workspace}.log"))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in ((0,) if kill_after is None else (0, -signal.SIGKILL))
    return code != 0


def _copy(config: Config, origin: Path, target: Path) -> Config:
    """Copies the workspace and returns its configuration."""
    return config.model_copy(update={"workspace": str(shutil.copytree(origin, target))})


def _files(config: Config) -> dict[str, str]:
    """Returns SHA-256 of the only searcher's files, except the report, which contains times."""
    workspace = Workspace(config.workspace)
    (id,) = workspace.ids("searchers")
    folder = workspace.local("searchers", id)
    found = {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    del found["build.json"]
    assert workspace.marker("searchers", id)["files"] == found
    return found


def _shards(config: Config) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = Workspace(config.workspace).marker("embeddings", "many-shards")["shards"]
    return shards
