"""Pruning deletes old releases, and never one that is live, was live before, or goes live at the same time."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.cli import summaries
from infra.releases import channels, tombstones
from infra.releases.pruning import prune
from infra.releases.releases import list_refusals, list_releases, live_release, promote, publish
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import GateError, JobError
from tests.infra.memory_storage import MemoryStorage
from tests.infra.releases.prune_actors import PruneActors, require_sound
from tests.infra.releases.sample_artifacts import FILES, commit_checked
from tests.infra.releases.stepped_storage import CHANGES, dying, interleave, killed

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def _publish(workspace: Workspace, *names: str, channel: str = "production") -> list[str]:
    return [publish(workspace, workspace, commit_checked(workspace, name), channel=channel).id for name in names]


def _age(workspace: Workspace, days: float, folder: str = "releases") -> None:
    """Ages files by setting their modification times."""
    moment = time.time() - days * 86400
    for path in Path(workspace.root, folder).rglob("*"):
        os.utime(path, (moment, moment))


def _ids(workspace: Workspace) -> set[str]:
    return {release.id for release in list_releases(workspace)}


def test_recent_and_protected_releases_are_kept(workspace: Workspace) -> None:
    ids = _publish(workspace, *NAMES)
    pruned = prune(workspace, keep=3, min_age_days=0)
    assert pruned.releases == sorted(ids[:2]) and pruned.kept == 3
    assert _ids(workspace) == set(ids[2:])
    assert prune(workspace, keep=0, min_age_days=0).releases == [ids[2]]
    assert _ids(workspace) == set(ids[3:]), "the live release and its predecessor"
    assert prune(workspace, keep=0, min_age_days=0).releases == []


def test_the_report_page_is_pruned_with_its_release(workspace: Workspace) -> None:
    release = publish(workspace, workspace, commit_checked(workspace, "first", page="report"))
    assert Path(workspace.root, "releases", release.id, "report.html").exists()
    _publish(workspace, "a", "b")
    assert prune(workspace, keep=0, min_age_days=0).releases == [release.id]
    assert not Path(workspace.root, "releases", release.id).exists()


def test_every_channel_protects_its_releases(workspace: Workspace) -> None:
    ids = _publish(workspace, *NAMES)
    for id in ids[:2]:
        promote(workspace, "production", "staging", id)
    assert prune(workspace, keep=0, min_age_days=0).releases == [ids[2]]


def test_young_releases_are_kept(workspace: Workspace) -> None:
    ids = _publish(workspace, *NAMES)
    assert prune(workspace, keep=0, min_age_days=1).releases == []
    _age(workspace, 3)
    assert prune(workspace, keep=0, min_age_days=4).releases == []
    assert prune(workspace, keep=0, min_age_days=1).releases == [], "they were live recently"
    assert _ids(workspace) == set(ids)


def test_a_dry_run_deletes_nothing(workspace: Workspace) -> None:
    ids = _publish(workspace, *NAMES)
    before = sorted(path for path in Path(workspace.root).rglob("*"))
    planned = prune(workspace, keep=2, min_age_days=0, dry_run=True)
    assert sorted(path for path in Path(workspace.root).rglob("*")) == before
    assert planned.releases == prune(workspace, keep=2, min_age_days=0).releases == sorted(ids[:3])


def test_uploads_in_progress_are_kept_and_abandoned_ones_deleted(workspace: Workspace) -> None:
    (live,) = _publish(workspace, "a")
    folder = Path(workspace.root, "releases", "half")
    folder.mkdir()
    (folder / FILES[0]).write_text("half")
    temporary = folder.parent / ".CURRENT.json.abc.tmp"
    temporary.write_text("half")
    assert prune(workspace, keep=0, min_age_days=0).unfinished == [] and folder.exists() and temporary.exists()
    _age(workspace, 1.1)
    (folder / "second").write_text("a slow upload")
    assert prune(workspace, keep=0, min_age_days=0).unfinished == [] and folder.exists()
    assert not temporary.exists()
    _age(workspace, 1.1)
    assert prune(workspace, keep=0, min_age_days=0).unfinished == ["half"] and not folder.exists()
    assert _ids(workspace) == {live}


def test_a_live_release_without_its_marker_is_kept(workspace: Workspace) -> None:
    (live,) = _publish(workspace, "a")
    Path(workspace.root, "releases", live, "release.json").unlink()
    _age(workspace, 10)
    prune(workspace, keep=0, min_age_days=0)
    assert Path(workspace.root, "releases", live, FILES[0]).exists()


@pytest.mark.parametrize("content", [b"", b"{"])
@pytest.mark.parametrize("channel", ["production", "staging"])
def test_nothing_is_deleted_while_a_pointer_is_damaged(workspace: Workspace, content: bytes, channel: str) -> None:
    ids = _publish(workspace, *NAMES)
    promote(workspace, "production", "staging", ids[0])
    Path(workspace.root, channels.path_of(channel)).write_bytes(content)
    with pytest.raises(JobError, match="is damaged"):
        prune(workspace, keep=0, min_age_days=0)
    assert set(workspace.ids("releases")) == set(ids)


def test_refusals_are_pruned_too(workspace: Workspace) -> None:
    for name in ("a", "b", "c"):
        with pytest.raises(GateError):
            publish(workspace, workspace, commit_checked(workspace, name, passed=False))
    assert prune(workspace, keep=1, min_age_days=1).refusals == 0
    assert prune(workspace, keep=1, min_age_days=0).refusals == 2
    assert [refusal.check for refusal in list_refusals(workspace)] == ["check-c-False"]


def test_the_result_names_only_what_was_deleted(workspace: Workspace) -> None:
    oldest, _ = _publish(workspace, "a", "b")
    assert summaries.pruned(prune(workspace, keep=1, min_age_days=0)) == "deleted: nothing; kept: 2 releases"
    _publish(workspace, "c")
    lines = summaries.pruned(prune(workspace, keep=1, min_age_days=0, dry_run=True)).splitlines()
    assert lines[0] == f"would be deleted: release {oldest}"
    assert lines[1].startswith("would be deleted: 1 release (") and lines[1].endswith(" MB); kept: 2 releases")


def test_a_damaged_release_is_pruned(workspace: Workspace) -> None:
    ids = _publish(workspace, "a", "b", "c")
    Path(workspace.root, "releases", ids[0], "release.json").write_text("{")
    assert prune(workspace, keep=0, min_age_days=0).releases == [ids[0]]


def test_a_pruned_release_can_be_published_again(workspace: Workspace) -> None:
    ids = _publish(workspace, "a", "b", "c")
    prune(workspace, keep=0, min_age_days=0)
    assert _publish(workspace, "a") == [ids[0]]
    require_sound(workspace)


# Interleavings: one command runs before every storage call of another one.

COMMANDS = ("rollback", "promote", "publish_pruned", "publish_other")

SOME = 12
"""Interval of the calls that `make test` interleaves on a local folder; the proofs cover every call."""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pruning")


@pytest.fixture(scope="module")
def actors(scratch: Path) -> PruneActors:
    return PruneActors(Workspace(str(scratch / "source")))


@pytest.fixture(scope="module")
def in_memory(actors: PruneActors, scratch: Path) -> Workspace:
    workspace = Workspace(str(scratch / "memory"), MemoryStorage())
    actors.fill(workspace)
    return workspace


@pytest.fixture(scope="module")
def in_folder(actors: PruneActors, scratch: Path) -> Workspace:
    workspace = Workspace(str(scratch / "folder"))
    actors.fill(workspace)
    return workspace


Interleave = Callable[..., int]


@pytest.fixture(params=["memory", "folder", pytest.param("folder, each call", marks=pytest.mark.proof)])
def interleaved(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Interleave]:
    """Interleaves on copies of the same releases: in memory at every call, in a folder at some or all calls."""
    if request.param == "memory":
        storage = request.getfixturevalue("in_memory").storage

        def fork() -> Callable[[], Workspace]:
            copy = storage.fork()
            return lambda: Workspace(str(tmp_path), copy.another_client())

        yield functools.partial(interleave, fork)
    else:
        template, count = request.getfixturevalue("in_folder").root, itertools.count()

        def copied() -> Callable[[], Workspace]:
            root = shutil.copytree(template, tmp_path / str(next(count)))
            return lambda: Workspace(str(root))

        yield functools.partial(interleave, copied, every=SOME if request.param == "folder" else 1)


@pytest.mark.parametrize("other", [*COMMANDS, "prune"])
def test_any_command_during_a_prune(actors: PruneActors, interleaved: Interleave, other: str) -> None:
    assert interleaved(actors.prune, getattr(actors, other), require_sound) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_a_prune_during_any_command(actors: PruneActors, interleaved: Interleave, command: str) -> None:
    assert interleaved(getattr(actors, command), actors.prune, require_sound) > 5


@pytest.mark.parametrize("other", ["rollback", "publish_pruned"])
def test_a_prune_suspended_during_another_prune_and_a_command(
    actors: PruneActors, interleaved: Interleave, other: str
) -> None:
    def between(workspace: Workspace) -> None:
        actors.prune(workspace)
        getattr(actors, other)(workspace)

    interleaved(actors.prune, between, require_sound)


def test_a_killed_prune_is_completed_by_the_next_one(actors: PruneActors, interleaved: Interleave) -> None:
    def verify(workspace: Workspace) -> None:
        require_sound(workspace)
        actors.prune(workspace)
        require_sound(workspace)
        assert len(workspace.storage.list_folders("releases")) == 2 == len(_ids(workspace))
        assert not workspace.storage.list_files(tombstones.FOLDER)

    interleaved(dying(actors.prune), killed, verify, calls=CHANGES)


def test_a_killed_prune_does_not_block_a_publisher(actors: PruneActors, interleaved: Interleave) -> None:
    def verify(workspace: Workspace) -> None:
        before = live_release(workspace)
        actors.publish_pruned(workspace)
        assert live_release(workspace) != before
        require_sound(workspace)

    interleaved(dying(actors.prune), killed, verify, calls=CHANGES)


def test_a_killed_publisher_leaves_the_live_release_unchanged(actors: PruneActors, interleaved: Interleave) -> None:
    def verify(workspace: Workspace) -> None:
        require_sound(workspace)
        actors.publish_other(workspace)
        require_sound(workspace)
        assert len(_ids(workspace)) == 5

    interleaved(dying(actors.publish_other), killed, verify, calls=CHANGES)
