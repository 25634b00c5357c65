"""Retention deletes artifacts that no release needs, keeps all others, and completes interrupted deletions."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.planning.plan import EmbedPlan
from infra.reindex.retention import Artifact, prune
from infra.releases import releases
from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Kind, Workspace
from searchforge.config import Config, load_config
from searchforge.errors import JobError
from searchforge.hashing import sha256_bytes
from tests.indexer.tiny_corpus import commit_embeddings, commit_on
from tests.infra.memory_storage import MemoryStorage
from tests.infra.releases.sample_artifacts import FILES, commit_check, commit_encoder, commit_searcher
from tests.infra.releases.stepped_storage import CHANGES, dying, interleave, killed

KINDS: tuple[Kind, ...] = ("encoders", "embeddings", "searchers", "checks", "releases")
DIM = 4


def _later(days: float = 30) -> datetime:
    return datetime.now(timezone.utc) + timedelta(days=days)


def _records(*ids: str) -> list[EmbeddingRecord]:
    return [EmbeddingRecord(id, np.eye(DIM, dtype=np.float32)[0], id, sha256_bytes(id.encode()), {}) for id in ids]


def _release(workspace: Workspace, embeddings: str, trained_on: str | None = None, encoder: str = "tiny") -> str:
    """Commits a searcher and a check for an embedding run and publishes them; returns the release's id."""
    made_from = {"encoder": encoder, "embeddings": embeddings}
    searcher, check = f"s-{embeddings}", f"c-{embeddings}"
    training = {"embeddings": trained_on or embeddings}
    commit_searcher(workspace, searcher, **made_from, quantizer=f"q{embeddings}", training=training)
    commit_check(workspace, check, searcher, provenance={**made_from, "searcher": searcher})
    return releases.publish(workspace, workspace, check).id


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Four releases: b builds on shards of a, and c on both; d is independent, except that its quantizer is c's."""
    workspace = Workspace(str(tmp_path_factory.mktemp("template")))
    commit_encoder(workspace, "tiny", DIM)
    a = commit_embeddings(workspace, _records("1", "2", "3"), "a", shards=1, dim=DIM)
    _release(workspace, "a")
    b = commit_on(workspace, a, "b", {"1"}, _records("4"))
    _release(workspace, "b")
    commit_on(workspace, b, "c", {"2"}, _records("5"))
    _release(workspace, "c")
    commit_embeddings(workspace, _records("6", "7"), "d", shards=1, dim=DIM)
    _release(workspace, "d", trained_on="c")
    return workspace


@pytest.fixture
def workspace(template: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the template."""
    return Workspace(str(shutil.copytree(template.root, tmp_path / "workspace")))


def _config(workspace: Workspace, **settings: Any) -> Config:
    overrides = {"workspace": workspace.root, "corpus.source": "photos", "reindex.keep_releases": 1}
    return load_config(None, {**overrides, **{f"reindex.{key}": value for key, value in settings.items()}})


def _prune(
    workspace: Workspace, made: Mapping[Kind, str] | None = None, now: datetime | None = None, **settings: Any
) -> list[Artifact]:
    return prune(_config(workspace, **settings), workspace, workspace, made or {}, now)


def _made(workspace: Workspace) -> dict[str, list[str]]:
    return {kind: workspace.ids(kind) for kind in KINDS}


def _require_whole(workspace: Workspace) -> None:
    """Asserts that every committed artifact is complete, with all its dependencies."""
    for id in workspace.ids("embeddings"):
        manifest = Manifest.model_validate(workspace.marker("embeddings", id))
        assert len(list(read_shards(workspace, manifest))) == manifest.records
    for kind in ("searchers", "releases"):
        for id in workspace.ids(kind):  # type: ignore[arg-type]
            folder = workspace.local(kind, id)  # type: ignore[arg-type]
            assert set(FILES) <= {path.name for path in folder.iterdir()}
    for release in releases.list_releases(workspace):
        for kind, id in zip(("searchers", "checks"), (f"s-{release.provenance['embeddings']}", ""), strict=True):
            assert not id or workspace.committed(kind, id)  # type: ignore[arg-type]


def test_dependencies_of_remaining_releases_are_kept(workspace: Workspace) -> None:
    """The live release d and its predecessor c stay; c needs shards of a and b, but not their releases."""
    gone = _prune(workspace, now=_later())
    assert set(gone) == {Artifact(kind, f"{kind[0]}-{id}") for kind in ("searchers", "checks") for id in ("a", "b")}
    assert _made(workspace)["embeddings"] == ["a", "b", "c", "d"] and len(_made(workspace)["releases"]) == 2
    _require_whole(workspace)


def test_artifacts_that_nothing_depends_on_are_deleted(workspace: Workspace) -> None:
    commit_encoder(workspace, "next", DIM)
    commit_embeddings(workspace, _records("8"), "e", shards=1, dim=DIM)
    for id in ("e", "f"):
        manifest = Manifest.model_validate(workspace.marker("embeddings", "e"))
        with workspace.create("embeddings", f"{id}-next") as staging:
            shutil.copytree(workspace.local("embeddings", "e"), staging.path, dirs_exist_ok=True)
            staging.commit(manifest.model_copy(update={"id": f"{id}-next", "encoder": "next"}).model_dump())
        _release(workspace, f"{id}-next", encoder="next")
    commit_encoder(workspace, "by-hand")
    _prune(workspace, now=_later())
    made = _made(workspace)
    assert made["embeddings"] == ["e-next", "f-next"] and made["searchers"] == ["s-e-next", "s-f-next"]
    assert made["encoders"] == ["by-hand", "next"]  # an encoder that was never used may have been trained manually
    _require_whole(workspace)


def test_live_releases_of_all_channels_are_kept(workspace: Workspace) -> None:
    first = next(release for release in releases.list_releases(workspace) if release.provenance["embeddings"] == "a")
    releases.promote(workspace, to="staging", source="production", release=first.id)
    _prune(workspace, now=_later())
    assert first.id in _made(workspace)["releases"] and "s-a" in _made(workspace)["searchers"]


def test_recent_artifacts_are_kept(workspace: Workspace) -> None:
    before = _made(workspace)
    assert _prune(workspace, keep_days=0) == []  # a command may be using them
    after = _made(workspace)
    assert {**after, "releases": []} == {**before, "releases": []}
    assert _prune(workspace, now=_later(), keep_days=60) == []


def test_nothing_is_deleted_if_everything_is_to_be_kept(workspace: Workspace) -> None:
    before = _made(workspace)
    assert _prune(workspace, now=_later(1000), keep_releases=None) == []
    assert _made(workspace) == before


def test_artifacts_of_the_current_run_are_kept(workspace: Workspace) -> None:
    commit_embeddings(workspace, _records("8"), "refused", shards=1, dim=DIM)
    commit_embeddings(workspace, _records("9"), "older", shards=1, dim=DIM)
    _prune(workspace, {"embeddings": "refused"}, _later())
    assert "refused" in _made(workspace)["embeddings"] and "older" not in _made(workspace)["embeddings"]


def test_abandoned_unfinished_artifacts_are_deleted(workspace: Workspace) -> None:
    storage = workspace.storage
    storage.write("embeddings/half/data-00000-of-00001.tfrecord", b"half")
    storage.write("encoders/half/saved_model/weights", b"half")
    storage.write("reindex/.LEASE.json.abc.tmp", b"half")
    storage.write("embeddings/d/plan-00000-of-00001.jsonl", b"left by a run that was killed after its commit")
    left = ("embeddings/half", "encoders/half", "reindex/.LEASE.json.abc.tmp", "embeddings/d/plan-00000-of-00001.jsonl")
    _prune(workspace, now=_later(6))
    assert all((Path(workspace.root) / name).exists() for name in left)
    _prune(workspace, now=_later())
    assert not any((Path(workspace.root) / name).exists() for name in left)
    _require_whole(workspace)


def test_what_an_unfinished_embedding_run_builds_on_is_kept(workspace: Workspace) -> None:
    commit_embeddings(workspace, _records("8", "9"), "first", shards=1, dim=DIM)
    first = Manifest.model_validate(workspace.marker("embeddings", "first"))
    commit_on(workspace, first, "second", {"8"}, _records("10"))
    second = Manifest.model_validate(workspace.marker("embeddings", "second"))
    plan = EmbedPlan(token="0", base="second", inputs=3, carried=tuple(s for s in second.shards if s.run), sizes=(1,))
    workspace.storage.write("embeddings/under-way/PLAN.json", plan.model_dump_json().encode())
    written = _later(29.5).timestamp()
    os.utime(Path(workspace.root, "embeddings/under-way/PLAN.json"), (written, written))
    _prune(workspace, now=_later(), keep_days=0)
    assert {"first", "second"} <= {*_made(workspace)["embeddings"]}
    _prune(workspace, now=_later(60), keep_days=0)  # by then the run is abandoned
    assert not {"first", "second", "under-way"} & {*workspace.all_ids("embeddings")}


def test_unused_cache_entries_are_deleted(workspace: Workspace) -> None:
    manifest = Manifest.model_validate(workspace.marker("embeddings", "d"))
    kept = (
        f"parts/qd/{manifest.shards[0].sha256}.v1.safetensors",
        "folded/abc-qd.tflite",
        "sources/d.sqlite",
        "captions/content-hashes.json",
    )
    gone = (
        "parts/qa/part",
        f"parts/qd/{'0' * 64}.v1.safetensors",
        "folded/abc-qa.tflite",
        "sources/z.sqlite",
        "queries/abc.npy",
        "captions/abc/1.jpg",
    )
    gone += ("training/abc-heads/state", "features/tower/chunk.npz")
    for name in (*kept, *gone):
        workspace.storage.write(f"cache/{name}", b"cached")
    _prune(workspace, now=_later(6))
    assert all(workspace.storage.exists(f"cache/{name}") for name in (*kept, *gone))
    _prune(workspace, now=_later())
    assert [name for name in (*kept, *gone) if workspace.storage.exists(f"cache/{name}")] == list(kept)


def test_nothing_is_deleted_if_dependencies_are_unknown(workspace: Workspace) -> None:
    workspace.storage.write("searchers/s-d/build.json", b'{"encoder": "tiny"}')
    with pytest.raises(JobError, match=r"searchers/s-d/build\.json does not say what it was built from"):
        _prune(workspace, now=_later())
    assert _made(workspace)["embeddings"] == ["a", "b", "c", "d"] and "s-a" in _made(workspace)["searchers"]


@pytest.mark.parametrize(
    ("place", "every"), [("memory", 1), ("folder", 20), pytest.param("folder", 1, marks=pytest.mark.proof)]
)
def test_an_interrupted_retention_is_completed_by_the_next_one(
    workspace: Workspace, tmp_path: Path, place: str, every: int
) -> None:
    for id in ("e", "f"):  # independent of the earlier runs
        commit_embeddings(workspace, _records("8", id), id, shards=1, dim=DIM)
        _release(workspace, id)
    storage, count = _in_memory(workspace), itertools.count()

    def make() -> Callable[[], Workspace]:
        root = str(tmp_path / str(next(count)))
        if place == "folder":
            shutil.copytree(workspace.root, root)
            return lambda: Workspace(root)
        copy = storage.fork()
        return lambda: Workspace(root, copy.another_client())

    pruned = make()()
    _prune(pruned, now=_later())
    expected, files = _made(pruned), _files(pruned)

    def verify(workspace: Workspace) -> None:
        _require_whole(workspace)
        _prune(workspace, now=_later())
        assert _made(workspace) == expected and _files(workspace) == files

    command = dying(lambda workspace: _prune(workspace, now=_later()))
    assert interleave(make, command, killed, verify, every, calls=CHANGES) > 20


def _in_memory(workspace: Workspace) -> MemoryStorage:
    """Returns a copy of a workspace's files."""
    storage, root = MemoryStorage(), Path(workspace.root)
    for path in root.rglob("*"):
        if path.is_file():
            storage.upload(path, path.relative_to(root).as_posix())
    return storage


def _files(workspace: Workspace) -> set[str]:
    """Returns the paths of all objects except lock files, which stay."""
    found = set()
    for folder in (*KINDS, "pruning", "refused", "reindex", "cache"):
        with workspace.storage.snapshot(folder) as snapshot:
            found |= {f"{folder}/{name}" for name in snapshot.objects if not name.endswith(".lock")}
    return found
