"""An artifact exists once its last file does; files of a killed process are never mistaken for an artifact."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_bytes, sha256_file
from searchforge.storage.base import Storage
from tests.infra.memory_storage import MemoryStorage


def test_a_committed_artifact_is_complete(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    with workspace.create("searchers", "abc") as staging:
        (staging.path / "sub").mkdir()
        (staging.path / "sub" / "file").write_text("content")
        assert not workspace.committed("searchers", "abc")
        staging.commit({"id": "abc"})
    assert workspace.ids("searchers") == ["abc"]
    assert workspace.marker("searchers", "abc") == {"id": "abc"}
    assert (workspace.local("searchers", "abc") / "sub" / "file").read_text() == "content"


def test_a_failed_artifact_leaves_nothing(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    with pytest.raises(RuntimeError), workspace.create("encoders", "abc") as staging:
        (staging.path / "file").write_text("half")
        raise RuntimeError
    assert workspace.ids("encoders") == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_without_its_last_file_is_not_an_artifact(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    (tmp_path / "encoders" / "half").mkdir(parents=True)
    (tmp_path / "encoders" / "half" / "weights").write_text("old")
    assert workspace.ids("encoders") == []
    with workspace.create("encoders", "half") as staging:
        staging.commit({"whole": True})
    assert workspace.marker("encoders", "half") == {"whole": True}
    assert not (tmp_path / "encoders" / "half" / "weights").exists()


def test_the_first_commit_of_an_id_is_kept(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    for writer in (1, 2):
        with workspace.create("searchers", "same") as staging:
            staging.commit({"writer": writer})
    assert workspace.marker("searchers", "same") == {"writer": 1}


@pytest.mark.parametrize("other_at", range(3))
def test_two_commits_of_an_id_to_a_bucket_leave_one_whole_artifact(other_at: int, tmp_path: Path) -> None:
    """The other process, whose files have other bytes, commits before the write number `other_at` of this one."""
    bucket = MemoryStorage()

    def commit(storage: Storage, content: str) -> None:
        workspace = Workspace(str(tmp_path / content), storage)
        with workspace.create("encoders", "a") as staging:
            for name in ("x", "y"):
                (staging.path / name).write_text(f"{content} {name}")
            staging.commit({"files": {name: sha256_file(staging.path / name) for name in ("x", "y")}})

    storage, writes = bucket.another_client(), itertools.count()

    def interrupted(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            if next(writes) == other_at:
                commit(bucket, "other")
            return method(*arguments)

        return wrapper

    for name in ("upload", "create"):
        setattr(storage, name, interrupted(getattr(storage, name)))
    commit(storage, "own")
    assert next(writes) > other_at
    stored = {name: sha256_bytes(bucket.read(f"encoders/a/{name}")) for name in ("x", "y")}
    assert Workspace(str(tmp_path / "third"), bucket).marker("encoders", "a")["files"] == stored


def test_staging_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom searchforge.artifacts.workspace import Workspace\n"
        "with Workspace(sys.argv[1]).create('encoders', 'x') as staging:\n"
        "    (staging.path / 'file').write_text('half')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    processes = []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"ready\n"
        processes.append(process)
    running, killed = processes
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    try:
        with Workspace(str(tmp_path)).create("encoders", "x") as staging:
            remaining = [path for path in (tmp_path / ".staging").iterdir() if path.is_dir() and path != staging.path]
            assert len(remaining) == 1
            assert (remaining[0] / "file").exists()
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("id", ["../x", "a/b", "", ".hidden", "x" * 100])
def test_an_id_cannot_leave_its_folder(tmp_path: Path, id: str) -> None:
    with pytest.raises(UsageError, match="is not an artifact id"):
        Workspace(str(tmp_path)).committed("encoders", id)


def test_the_error_for_a_missing_artifact_lists_the_existing_ones(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    with workspace.create("encoders", "abc") as staging:
        staging.commit({})
    with pytest.raises(UsageError, match=r"encoders/xyz is not in workspace .*; existing: abc"):
        workspace.local("encoders", "xyz")


def test_a_bucket_needs_a_writable_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    workspace = Workspace("gs://bucket/photos")
    with pytest.raises(JobError, match=r"/dev/null/home/\.cache/.* cannot be created.*; .* set XDG_CACHE_HOME to"):
        workspace.cache("features")
