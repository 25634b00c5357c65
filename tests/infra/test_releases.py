"""Only the very bytes that passed a check are published; one write makes a release live, or an earlier one again."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.releases import CURRENT, find_release, list_releases, live_release, publish, rollback
from searchforge.errors import GateError, SearchforgeError, UsageError
from searchforge.hashing import sha256_file
from searchforge.workspace import Workspace

FILES = ("text_searcher.tflite", "image_searcher.tflite")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def _checked(workspace: Workspace, name: str, passed: bool = True, latency: float = 5.0) -> str:
    """Commits a searcher with files of its own and a check of it; returns the check's id."""
    with workspace.create("searchers", name) as staging:
        for file in FILES:
            (staging.path / file).write_text(f"{name} {file}")
        staging.commit({"id": name})
    folder = workspace.local("searchers", name)
    check = f"check-{name}-{passed}"
    report = {
        "id": check,
        "passed": passed,
        "gates": [{"name": "recall_at_10", "passed": passed}],
        "searcher": name,
        "fingerprint": "f" * 64,
        "files": {
            file: {"sha256": sha256_file(folder / file), "bytes": (folder / file).stat().st_size} for file in FILES
        },
        "figures": {"images": 10, "recall_at_10": 0.97, "latency_p50_ms": latency},
        "provenance": {"encoder": "e", "embeddings": "m", "searcher": name},
    }
    with workspace.create("checks", check) as staging:
        staging.commit(report)
    return check


def test_a_passed_searcher_becomes_live(workspace: Workspace) -> None:
    release = publish(workspace, workspace, _checked(workspace, "a"))
    found, folder = find_release(workspace)
    assert release.live and found == release
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "release.json", "report.json"])
    for file in FILES:
        assert (folder / file).read_text() == f"a {file}"
        assert release.files[file]["sha256"] == sha256_file(folder / file)


def test_a_failed_check_is_not_published(workspace: Workspace) -> None:
    with pytest.raises(GateError, match=r"did not pass \(recall_at_10\)"):
        publish(workspace, workspace, _checked(workspace, "a", passed=False))
    assert list_releases(workspace) == [] and live_release(workspace) is None


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_other_bytes_than_the_checked_ones_are_not_published(workspace: Workspace, damage: str) -> None:
    check = _checked(workspace, "a")
    file = workspace.local("searchers", "a") / FILES[1]
    file.write_text("other") if damage == "changed" else file.unlink()
    with pytest.raises(GateError, match=r"image_searcher.tflite of searcher a has"):
        publish(workspace, workspace, check)
    assert list_releases(workspace) == []


def test_an_unchecked_searcher_is_not_published(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="checks/none is not in workspace"):
        publish(workspace, workspace, "none")


def test_publishing_again_changes_nothing(workspace: Workspace) -> None:
    check = _checked(workspace, "a")
    first = publish(workspace, workspace, check)
    current = workspace.storage.read(CURRENT)
    assert publish(workspace, workspace, check) == first
    assert workspace.storage.read(CURRENT) == current


def test_releases_go_where_they_are_told(workspace: Workspace, tmp_path: Path) -> None:
    target = Workspace(str(tmp_path / "public"))
    publish(workspace, target, _checked(workspace, "a"))
    assert len(list_releases(target)) == 1 and list_releases(workspace) == []


def test_rollback_goes_back_one_release_at_a_time(workspace: Workspace) -> None:
    ids = [publish(workspace, workspace, _checked(workspace, name)).id for name in ("a", "b", "c")]
    assert [release.id for release in list_releases(workspace)] == ids[::-1]
    assert rollback(workspace).id == ids[1] == live_release(workspace)
    assert rollback(workspace).id == ids[0] == live_release(workspace)
    with pytest.raises(UsageError, match="no release before the live one"):
        rollback(workspace)
    assert rollback(workspace, ids[2]).id == live_release(workspace)
    assert [release.live for release in list_releases(workspace)] == [True, False, False]


def test_a_schedule_does_not_undo_a_rollback(workspace: Workspace) -> None:
    first, second = (_checked(workspace, name) for name in ("a", "b"))
    good = publish(workspace, workspace, first)
    bad = publish(workspace, workspace, second)
    rollback(workspace)
    assert publish(workspace, workspace, second, revive=False).id == bad.id
    assert live_release(workspace) == good.id
    assert publish(workspace, workspace, second).live
    assert live_release(workspace) == bad.id


def test_the_id_does_not_depend_on_measured_times(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(str(tmp_path / "other"))
    ids = {
        publish(place, place, _checked(place, "a", latency=latency)).id
        for place, latency in ((workspace, 5.0), (other, 6.0))
    }
    assert len(ids) == 1


def test_rollback_refuses_a_damaged_release(workspace: Workspace) -> None:
    ids = [publish(workspace, workspace, _checked(workspace, name)).id for name in ("a", "b")]
    (workspace.local("releases", ids[0]) / FILES[0]).write_text("damaged")
    with pytest.raises(GateError, match=f"text_searcher.tflite of release {ids[0]} is damaged"):
        rollback(workspace)
    assert live_release(workspace) == ids[1]


def test_rollback_refuses_an_unknown_release(workspace: Workspace) -> None:
    publish(workspace, workspace, _checked(workspace, "a"))
    with pytest.raises(UsageError, match="releases/unknown is not in workspace"):
        rollback(workspace, "unknown")


def test_racing_publishers_leave_one_whole_release_live(workspace: Workspace) -> None:
    checks = [_checked(workspace, f"s{index}") for index in range(8)]

    def attempt(check: str) -> str | None:
        try:
            return publish(workspace, workspace, check).id
        except SearchforgeError as error:
            assert "stored but not live" in str(error)
            return None

    with ThreadPoolExecutor(8) as pool:
        winners = [id for id in pool.map(attempt, checks) if id]
    assert live_release(workspace) in winners
    assert len(list_releases(workspace)) == 8


def test_a_release_that_is_not_whole_is_not_listed(workspace: Workspace) -> None:
    release = publish(workspace, workspace, _checked(workspace, "a"))
    (Path(workspace.root) / "releases" / "half").mkdir()
    (Path(workspace.root) / "releases" / "half" / FILES[0]).write_text("half")
    assert [found.id for found in list_releases(workspace)] == [release.id]


def test_current_names_the_release_and_nothing_else_moves(workspace: Workspace) -> None:
    release = publish(workspace, workspace, _checked(workspace, "a"))
    assert json.loads(workspace.storage.read(CURRENT))["release"] == release.id
