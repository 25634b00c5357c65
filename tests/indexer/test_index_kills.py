"""An index command that is killed at any moment and run once more ends with the files of an undisturbed one."""

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


@pytest.mark.parametrize(("kills", "kills_a_copy"), [(2, 2), pytest.param(10, 5, marks=pytest.mark.proof)])
def test_a_command_that_was_killed_ends_with_the_files_of_an_undisturbed_one(
    tmp_path: Path, kills: int, kills_a_copy: int
) -> None:
    """A workspace is killed up to `kills_a_copy` times before it may finish, until there were `kills` in all."""
    corpus = make_corpus(tmp_path / "origin", count=100, data__captions=[])
    commit_embeddings(corpus.workspace, corpus.records, "many-shards", shards=12)
    origin = Path(corpus.workspace.root)
    isolated.Session(MODULE).close()  # the server of its processes is shared by what is forked from here
    undisturbed = _copy(corpus.config, origin, tmp_path / "undisturbed")
    start = time.monotonic()
    _run(undisturbed)
    seconds = time.monotonic() - start
    expected = _files(undisturbed)
    assert "index.ldb" in expected
    generator, killed = random.Random(0), 0
    while killed < kills:
        config = _copy(corpus.config, origin, tmp_path / f"killed-{killed}")
        for _ in range(kills_a_copy):
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
    """Builds in a process of its own; returns whether it was killed before it ended."""
    process = fork(lambda: build_index(config, "many-shards"), Path(f"{config.workspace}.log"))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in ((0,) if kill_after is None else (0, -signal.SIGKILL))
    return code != 0


def _copy(config: Config, origin: Path, target: Path) -> Config:
    """Returns the configuration of a copy of the workspace."""
    return config.model_copy(update={"workspace": str(shutil.copytree(origin, target))})


def _files(config: Config) -> dict[str, str]:
    """SHA-256 of the only searcher's files, but for the report, which says when it was built."""
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
