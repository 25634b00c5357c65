"""Prune deletes what nobody goes back to, and never what is live, was live before, or goes live while it works."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import channels, tombstones
from infra.channels import read
from infra.pruning import prune
from infra.releases import (
    list_refusals,
    list_releases,
    live_release,
    promote,
    publish,
    require_whole,
    rollback,
)
from searchforge.errors import ConflictError, GateError, JobError, UsageError
from searchforge.workspace import Workspace
from tests.infra.release_world import FILES, commit_checked
from tests.infra.stepped_storage import KilledError, interleave

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def _publish(workspace: Workspace, *names: str, channel: str = "production") -> list[str]:
    return [publish(workspace, workspace, commit_checked(workspace, name), channel=channel).id for name in names]


def _age(workspace: Workspace, days: float, folder: str = "releases") -> None:
    """Makes files older by the storage's clock, which is that of the file system."""
    moment = time.time() - days * 86400
    for path in Path(workspace.root, folder).rglob("*"):
        os.utime(path, (moment, moment))


def _ids(workspace: Workspace) -> set[str]:
    return {release.id for release in list_releases(workspace)}


def test_the_latest_and_the_protected_ones_stay(workspace: Workspace) -> None:
    ids = _publish(workspace, *NAMES)
    pruned = prune(workspace, keep=3, min_age_days=0)
    assert pruned.releases == sorted(ids[:2]) and pruned.kept == 3
    assert _ids(workspace) == set(ids[2:])
    assert prune(workspace, keep=0, min_age_days=0).releases == [ids[2]]
    assert _ids(workspace) == set(ids[3:]), "the live one and its predecessor"
    assert prune(workspace, keep=0, min_age_days=0).releases == []


def test_every_channel_protects_its_own(workspace: Workspace) -> None:
    ids = _publish(workspace, *NAMES)
    for id in ids[:2]:
        promote(workspace, "production", "staging", id)
    assert prune(workspace, keep=0, min_age_days=0).releases == [ids[2]]


def test_young_releases_stay(workspace: Workspace) -> None:
    ids = _publish(workspace, *NAMES)
    assert prune(workspace, keep=0, min_age_days=1).releases == []
    _age(workspace, 3)
    assert prune(workspace, keep=0, min_age_days=4).releases == []
    assert prune(workspace, keep=0, min_age_days=1).releases == [], "they were live a moment ago"
    assert _ids(workspace) == set(ids)


def test_a_dry_run_deletes_nothing(workspace: Workspace) -> None:
    ids = _publish(workspace, *NAMES)
    before = sorted(path for path in Path(workspace.root).rglob("*"))
    planned = prune(workspace, keep=2, min_age_days=0, dry_run=True)
    assert sorted(path for path in Path(workspace.root).rglob("*")) == before
    assert planned.releases == prune(workspace, keep=2, min_age_days=0).releases == sorted(ids[:3])


def test_uploads_in_progress_stay_and_dead_ones_go(workspace: Workspace) -> None:
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


def test_a_live_release_without_its_marker_stays(workspace: Workspace) -> None:
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


def test_a_damaged_release_is_pruned_as_any_other(workspace: Workspace) -> None:
    ids = _publish(workspace, "a", "b", "c")
    Path(workspace.root, "releases", ids[0], "release.json").write_text("{")
    assert prune(workspace, keep=0, min_age_days=0).releases == [ids[0]]


def test_a_pruned_release_can_be_published_again(workspace: Workspace) -> None:
    ids = _publish(workspace, "a", "b", "c")
    prune(workspace, keep=0, min_age_days=0)
    assert _publish(workspace, "a") == [ids[0]]
    _require_sound(workspace)


# Two actors at once: every point at which the one can be interrupted by the other, on a real folder.


def _require_sound(workspace: Workspace) -> None:
    """What is live is whole."""
    for channel in channels.channels(workspace.storage):
        pointer = read(workspace.storage, channel).pointer
        if pointer.release is None and channel != "production":
            continue  # a channel that was to begin with a release that is being deleted
        assert pointer.release
        require_whole(workspace, pointer.release)
        for file in pointer.files.values():
            assert len(workspace.storage.read(f"releases/{file.path}")) == file.bytes
    assert not [release for release in list_releases(workspace) if release.damaged]


@contextlib.contextmanager
def _may_lose() -> Any:
    """The commands of the user's that may fail, as they say themselves, when another one was faster."""
    with contextlib.suppress(ConflictError, UsageError, GateError):
        yield


def _prune(workspace: Workspace) -> None:
    prune(workspace, keep=0, min_age_days=0)


def _rollback(workspace: Workspace) -> None:
    with _may_lose():
        rollback(workspace, _oldest(workspace))


def _promote(workspace: Workspace) -> None:
    with _may_lose():
        promote(workspace, "production", "staging", _oldest(workspace))


def _publish_pruned(workspace: Workspace) -> None:
    with _may_lose():
        publish(workspace, workspace, "check-a-True")


def _publish_other(workspace: Workspace) -> None:
    with _may_lose():
        _publish(workspace, "z")


def _oldest(workspace: Workspace) -> str:
    return str(workspace.marker("checks", "check-a-True")["release"])


def _make(tmp_path: Path) -> Callable[[], str]:
    """Returns what makes a workspace with four releases, of which a prune deletes two."""
    template = Workspace(str(tmp_path / "template"))
    ids = _publish(template, "a", "b", "c", "d")
    check = Path(template.root, "checks", "check-a-True", "report.json")
    check.write_text(check.read_text().replace("{", f'{{"release": "{ids[0]}",', 1))
    count = iter(range(10**6))

    def make() -> str:
        root = tmp_path / str(next(count))
        shutil.copytree(template.root, root)
        return str(root)

    return make


OTHERS = [_rollback, _promote, _publish_pruned, _publish_other, _prune]


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_comes_in_between_a_prune(tmp_path: Path, other: Callable[[Workspace], None]) -> None:
    assert interleave(_make(tmp_path), _prune, other, _require_sound) > 10


@pytest.mark.parametrize("command", OTHERS[:-1])
def test_whenever_a_prune_comes_in_between(tmp_path: Path, command: Callable[[Workspace], None]) -> None:
    assert interleave(_make(tmp_path), command, _prune, _require_sound) > 5


@pytest.mark.parametrize("other", [_rollback, _publish_pruned])
def test_three_at_once(tmp_path: Path, other: Callable[[Workspace], None]) -> None:
    """A prune sleeps while another one does the whole work and somebody publishes or rolls back."""

    def between(workspace: Workspace) -> None:
        _prune(workspace)
        other(workspace)

    interleave(_make(tmp_path), _prune, between, _require_sound)


def test_a_killed_prune_is_finished_by_the_next_one(tmp_path: Path) -> None:
    def kill(workspace: Workspace) -> None:
        raise KilledError

    def command(workspace: Workspace) -> None:
        with contextlib.suppress(KilledError):
            _prune(workspace)

    def verify(workspace: Workspace) -> None:
        _require_sound(workspace)
        _prune(workspace)
        _require_sound(workspace)
        assert len(_ids(workspace)) == 2
        assert len(workspace.storage.names("releases")) == 2 and not workspace.storage.files(tombstones.FOLDER)

    interleave(_make(tmp_path), command, kill, verify)


def test_what_a_killed_prune_left_does_not_keep_a_publisher_from_its_work(tmp_path: Path) -> None:
    def kill(workspace: Workspace) -> None:
        raise KilledError

    def command(workspace: Workspace) -> None:
        with contextlib.suppress(KilledError):
            _prune(workspace)

    def verify(workspace: Workspace) -> None:
        assert publish(workspace, workspace, "check-a-True").id == live_release(workspace)
        _require_sound(workspace)

    interleave(_make(tmp_path), command, kill, verify)


def test_a_killed_publisher_leaves_the_live_release(tmp_path: Path) -> None:
    def kill(workspace: Workspace) -> None:
        raise KilledError

    def command(workspace: Workspace) -> None:
        with contextlib.suppress(KilledError):
            _publish(workspace, "z")

    def verify(workspace: Workspace) -> None:
        _require_sound(workspace)
        (id,) = _publish(workspace, "z")
        assert live_release(workspace) == id
        _require_sound(workspace)

    interleave(_make(tmp_path), command, kill, verify)
