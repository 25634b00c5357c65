"""Publishing, promotion, rollback and listing of releases."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.releases import channels
from infra.releases.releases import (
    Release,
    find_release,
    list_refusals,
    list_releases,
    live_release,
    promote,
    publish,
    rollback,
)
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import ConflictError, GateError, JobError, UsageError
from searchforge.hashing import sha256_file
from tests.infra.releases.sample_artifacts import FILES, commit_checked

CURRENT = "releases/CURRENT.json"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def _publish(workspace: Workspace, *names: str, channel: str = "production") -> list[str]:
    return [publish(workspace, workspace, commit_checked(workspace, name), channel=channel).id for name in names]


def test_a_passed_searcher_becomes_live(workspace: Workspace) -> None:
    release = publish(workspace, workspace, commit_checked(workspace, "a"))
    found, folder = find_release(workspace)
    assert release.live and found == release
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "release.json", "report.json"])
    for file in FILES:
        assert (folder / file).read_text() == f"a {file}"
        assert release.files[file]["sha256"] == sha256_file(folder / file)


def test_the_report_page_is_part_of_the_release_but_not_of_the_pointer(workspace: Workspace) -> None:
    release = publish(workspace, workspace, commit_checked(workspace, "a", page="<p>report</p>"))
    page = find_release(workspace)[1] / "report.html"
    assert page.read_text() == "<p>report</p>"
    content = json.loads(workspace.storage.read(f"releases/{release.id}/release.json"))
    assert content["documents"] == {"report.html": {"bytes": page.stat().st_size, "sha256": sha256_file(page)}}
    assert content["files"].keys() == set(FILES) == json.loads(workspace.storage.read(CURRENT))["files"].keys()


def test_the_id_does_not_depend_on_the_report_page(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(str(tmp_path / "other"))
    ids = {
        publish(place, place, commit_checked(place, "a", page=page)).id
        for place, page in ((workspace, "held for 5 ms"), (other, None))
    }
    assert len(ids) == 1


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_the_report_page_is_verified_with_the_release(workspace: Workspace, damage: str) -> None:
    check = commit_checked(workspace, "a", page="report")
    release = publish(workspace, workspace, check)
    _publish(workspace, "b")
    page = workspace.local("releases", release.id) / "report.html"
    page.write_text("REPORT") if damage == "changed" else page.unlink()
    with pytest.raises(GateError, match=f"report.html of release {release.id} is (damaged|missing)"):
        rollback(workspace)
    page.unlink(missing_ok=True)
    assert publish(workspace, workspace, check).live
    assert page.read_text() == "report"


def test_the_pointer_contains_all_that_an_app_needs(workspace: Workspace) -> None:
    first, second = _publish(workspace, "a", "b")
    pointer = json.loads(workspace.storage.read(CURRENT))
    assert (pointer["release"], pointer["previous"], pointer["channel"]) == (second, first, "production")
    assert (pointer["encoder"], pointer["fingerprint"], pointer["images"]) == ("e", "f" * 64, 10)
    assert pointer["files"].keys() == set(FILES)
    for name, file in pointer["files"].items():
        path = Path(workspace.root) / "releases" / file["path"]
        assert path.read_text() == f"b {name}"
        assert (file["bytes"], file["sha256"]) == (path.stat().st_size, sha256_file(path))


def test_the_minimum_task_library_is_the_version_used_by_checks(workspace: Workspace) -> None:
    _publish(workspace, "a")
    pointer = json.loads(workspace.storage.read(CURRENT))
    assert pointer["minimum_task_library"] == importlib.metadata.version("tflite-support")


def test_a_failed_check_is_refused_and_recorded(workspace: Workspace) -> None:
    check = commit_checked(workspace, "a", passed=False)
    with pytest.raises(GateError, match=r"did not pass its check .*\n  recall_at_10: 0.97 meets the minimum"):
        publish(workspace, workspace, check, channel="staging")
    assert list_releases(workspace) == [] and live_release(workspace, "staging") is None
    (refusal,) = list_refusals(workspace)
    assert (refusal.check, refusal.channel, refusal.release) == (check, "staging", "")
    assert refusal.gates == {"recall_at_10": "0.97 meets the minimum of 0.95"}


def test_a_release_records_why_it_was_published(workspace: Workspace) -> None:
    release = publish(workspace, workspace, commit_checked(workspace, "a"))
    assert release.reason == "check check-a-True passed all its gates"
    assert release.gates == {"recall_at_10": "0.97 meets the minimum of 0.95"}
    assert list_refusals(workspace) == []


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_only_the_checked_bytes_are_published(workspace: Workspace, damage: str) -> None:
    check = commit_checked(workspace, "a")
    file = workspace.local("searchers", "a") / FILES[1]
    file.write_text("other") if damage == "changed" else file.unlink()
    with pytest.raises(GateError, match=r"image_searcher.tflite of searcher a has"):
        publish(workspace, workspace, check)
    assert list_releases(workspace) == []
    assert "check the searcher again" in list_refusals(workspace)[0].reason


def test_an_unchecked_searcher_is_not_published(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="checks/none is not in workspace"):
        publish(workspace, workspace, "none")


def test_publishing_again_changes_nothing(workspace: Workspace) -> None:
    check = commit_checked(workspace, "a")
    first = publish(workspace, workspace, check)
    current = workspace.storage.read(CURRENT)
    assert publish(workspace, workspace, check) == first
    assert workspace.storage.read(CURRENT) == current


def test_releases_are_stored_in_the_target(workspace: Workspace, tmp_path: Path) -> None:
    target = Workspace(str(tmp_path / "public"))
    publish(workspace, target, commit_checked(workspace, "a"))
    assert len(list_releases(target)) == 1 and list_releases(workspace) == []


def test_rollback_goes_back_one_release_at_a_time(workspace: Workspace) -> None:
    ids = _publish(workspace, "a", "b", "c")
    assert [release.id for release in list_releases(workspace)] == ids[::-1]
    assert rollback(workspace).id == ids[1] == live_release(workspace)
    assert rollback(workspace).id == ids[0] == live_release(workspace)
    with pytest.raises(UsageError, match="no earlier release in channel production"):
        rollback(workspace)
    assert rollback(workspace, ids[2]).id == live_release(workspace)
    assert [release.live for release in list_releases(workspace)] == [True, False, False]


def test_a_rollback_is_a_single_write(workspace: Workspace) -> None:
    _publish(workspace, "a", "b")
    before = channels.read(workspace.storage).pointer.serial
    files = {path: path.read_bytes() for path in Path(workspace.root, "releases").rglob("*.*") if path.is_file()}
    rollback(workspace)
    assert channels.read(workspace.storage).pointer.serial == before + 1
    changed = [path.name for path, data in files.items() if path.read_bytes() != data]
    assert changed == ["CURRENT.json"]


def test_each_channel_has_its_own_history(workspace: Workspace) -> None:
    first, second = _publish(workspace, "a", "b")
    _publish(workspace, "other", channel="staging")
    rollback(workspace)
    assert live_release(workspace) == first
    _publish(workspace, "c")
    assert rollback(workspace).id == first, "the withdrawn release is not in the history of c"
    assert second not in (live_release(workspace), channels.read(workspace.storage).pointer.previous)


def test_a_republished_release_can_be_rolled_back(workspace: Workspace) -> None:
    first, second = _publish(workspace, "a", "b")
    assert _publish(workspace, "a") == [first]
    assert rollback(workspace).id == second == live_release(workspace)


def test_a_schedule_does_not_undo_a_rollback(workspace: Workspace) -> None:
    first, second = (commit_checked(workspace, name) for name in ("a", "b"))
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
        publish(place, place, commit_checked(place, "a", latency=latency)).id
        for place, latency in ((workspace, 5.0), (other, 6.0))
    }
    assert len(ids) == 1


@pytest.mark.parametrize("damage", ["changed", "removed"])
@pytest.mark.parametrize("command", [lambda w, _: rollback(w), lambda w, id: promote(w, to="staging", source=id)])
def test_a_damaged_release_does_not_go_live_again(
    workspace: Workspace, damage: str, command: Callable[[Workspace, str], Release]
) -> None:
    damaged, live = _publish(workspace, "a", "b")
    channel = "canary"
    promote(workspace, "production", channel, damaged)
    file = workspace.local("releases", damaged) / FILES[0]
    file.write_text(file.read_text()[::-1]) if damage == "changed" else file.unlink()
    with pytest.raises(GateError, match=f"text_searcher.tflite of release {damaged} is (damaged|missing)"):
        command(workspace, channel)
    assert live_release(workspace) == live and live_release(workspace, "staging") is None


def test_rollback_refuses_an_unknown_release(workspace: Workspace) -> None:
    _publish(workspace, "a")
    with pytest.raises(UsageError, match="releases/unknown is not in workspace"):
        rollback(workspace, "unknown")


def test_rollback_names_the_pruned_release_and_the_available_ones(workspace: Workspace) -> None:
    ids = _publish(workspace, "a", "b")
    workspace.storage.delete_folder(f"releases/{ids[0]}")
    with pytest.raises(UsageError, match=f"release {ids[0]}, which was live before, was pruned; .* --to: {ids[1]}"):
        rollback(workspace)
    assert live_release(workspace) == ids[1]


def test_a_channel_has_its_own_live_release(workspace: Workspace) -> None:
    (production,) = _publish(workspace, "a")
    (staging,) = _publish(workspace, "b", channel="staging")
    assert (live_release(workspace), live_release(workspace, "staging")) == (production, staging)
    assert find_release(workspace, channel="staging")[0].id == staging
    assert {release.id: release.channels for release in list_releases(workspace)} == {
        production: ("production",),
        staging: ("staging",),
    }
    assert promote(workspace).id == staging == live_release(workspace)
    assert list_releases(workspace)[0].channels == ("production", "staging")
    assert rollback(workspace).id == production
    assert live_release(workspace, "staging") == staging


def test_promotion_needs_two_channels_and_a_release(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match=r"channel staging of .* has no live release"):
        promote(workspace)
    with pytest.raises(UsageError, match="from one channel to another"):
        promote(workspace, "staging", "staging")
    for name in ("", "../x", "Staging", "a" * 40):
        with pytest.raises(UsageError, match="is not a valid channel name"):
            live_release(workspace, name)


@pytest.mark.parametrize("content", [b"", b'{"release": "a', b"[]", b'{"release": 3}', b"\xff\xfe"])
def test_a_damaged_pointer_is_not_mistaken_for_an_empty_one(workspace: Workspace, content: bytes) -> None:
    _publish(workspace, "a")
    check = commit_checked(workspace, "b")
    Path(workspace.root, CURRENT).write_bytes(content)
    commands: list[Callable[[], object]] = [
        lambda: live_release(workspace),
        lambda: list_releases(workspace),
        lambda: find_release(workspace),
        lambda: publish(workspace, workspace, check),
        lambda: rollback(workspace),
        lambda: channels.advance_fence(workspace.storage, "production", 1),
    ]
    for command in commands:
        with pytest.raises(JobError, match=r"releases/CURRENT.json is damaged \(.*the live release is unknown"):
            command()
    assert Path(workspace.root, CURRENT).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": "x"}', b"\xff\xfe"])
def test_a_damaged_release_is_listed_and_does_not_hide_others(workspace: Workspace, content: bytes) -> None:
    damaged, whole = _publish(workspace, "a", "b")
    marker = Path(workspace.root, "releases", damaged, "release.json")
    marker.write_bytes(content)
    first, second = list_releases(workspace)
    assert (first.id, first.damaged, second.id) == (whole, "", damaged)
    assert f"releases/{damaged}/release.json is damaged" in second.damaged
    with pytest.raises(JobError, match=f"releases/{damaged}/release.json is damaged"):
        find_release(workspace, damaged)
    with pytest.raises(JobError, match="is damaged"):
        rollback(workspace)
    assert publish(workspace, workspace, "check-a-True").id == damaged
    assert [release.damaged for release in list_releases(workspace)] == ["", ""]


def test_a_missing_live_release_is_listed_as_damaged(workspace: Workspace) -> None:
    (id,) = _publish(workspace, "a")
    workspace.storage.delete_folder(f"releases/{id}")
    (release,) = list_releases(workspace)
    assert release.live and "is not in workspace" in release.damaged


@pytest.mark.parametrize("same_start", [True, False])
def test_exactly_one_racing_publisher_wins(workspace: Workspace, same_start: bool) -> None:
    _publish(workspace, *(["before"] if same_start else []))
    expected = channels.read(workspace.storage)
    checks = [commit_checked(workspace, f"s{index}") for index in range(12)]

    def attempt(check: str) -> str | None:
        try:
            return publish(workspace, workspace, check, expected=expected).id
        except ConflictError as error:
            assert "is stored but not live" in str(error)
            assert "went live in channel production in the meantime" in str(error)
            return None

    with ThreadPoolExecutor(12) as pool:
        (winner,) = [id for id in pool.map(attempt, checks) if id]
    assert live_release(workspace) == winner
    assert len(list_releases(workspace)) == 12 + same_start
    assert {refusal.release for refusal in list_refusals(workspace)} == {
        release.id for release in list_releases(workspace) if release.id != winner
    } - set(channels.read(workspace.storage).pointer.protected)


def test_a_decision_made_before_another_release_went_live_is_refused(workspace: Workspace) -> None:
    first, _ = _publish(workspace, "a", "b")
    expected = channels.read(workspace.storage)
    rollback(workspace)
    with pytest.raises(ConflictError, match=f"{first} went live in channel production in the meantime"):
        publish(workspace, workspace, commit_checked(workspace, "c"), expected=expected)
    assert live_release(workspace) == first


def test_a_pointer_rewritten_with_the_same_releases_does_not_conflict(workspace: Workspace) -> None:
    _publish(workspace, "a")
    expected = channels.read(workspace.storage)
    channels.touch(workspace.storage, "production", workspace.storage.now())
    channels.advance_fence(workspace.storage, "production", 5)
    release = publish(workspace, workspace, commit_checked(workspace, "b"), expected=expected)
    assert live_release(workspace) == release.id
    assert channels.read(workspace.storage).pointer.fence == 5


def test_a_publisher_with_a_stale_fencing_token_is_refused(workspace: Workspace) -> None:
    channels.advance_fence(workspace.storage, "production", 7)
    assert live_release(workspace) is None
    check = commit_checked(workspace, "a")
    with pytest.raises(ConflictError, match="has fencing token 7, but this run holds the older token 6"):
        publish(workspace, workspace, check, fence=6)
    with pytest.raises(ConflictError, match="fencing token 7"):
        channels.advance_fence(workspace.storage, "production", 6)
    assert live_release(workspace) is None
    release = publish(workspace, workspace, check, fence=7)
    channels.advance_fence(workspace.storage, "production", 7)
    with pytest.raises(ConflictError, match="fencing token 7"):
        publish(workspace, workspace, check, fence=6)
    assert live_release(workspace) == release.id
    assert publish(workspace, workspace, commit_checked(workspace, "b")).live, "manual publishing needs no token"


def test_the_fencing_token_is_verified_when_the_pointer_is_written(workspace: Workspace) -> None:
    expected = channels.read(workspace.storage)
    channels.advance_fence(workspace.storage, "production", 8)
    with pytest.raises(ConflictError, match=r"is stored but not live: .* token 8, but .* the older token 7"):
        publish(workspace, workspace, commit_checked(workspace, "a"), fence=7, expected=expected)
    assert live_release(workspace) is None


def test_an_incomplete_release_is_not_listed(workspace: Workspace) -> None:
    release = publish(workspace, workspace, commit_checked(workspace, "a"))
    (Path(workspace.root) / "releases" / "half").mkdir()
    (Path(workspace.root) / "releases" / "half" / FILES[0]).write_text("half")
    assert [found.id for found in list_releases(workspace)] == [release.id]


def test_a_release_with_a_missing_file_is_repaired(workspace: Workspace) -> None:
    (id,) = _publish(workspace, "a")
    (workspace.local("releases", id) / FILES[0]).unlink()
    assert _publish(workspace, "a") == [id]
    assert (workspace.local("releases", id) / FILES[0]).read_text() == f"a {FILES[0]}"


def test_history_is_bounded(workspace: Workspace) -> None:
    for index in range(channels.HISTORY + 5):
        (last,) = _publish(workspace, f"s{index}")
    pointer = channels.read(workspace.storage).pointer
    assert pointer.release == last and len(pointer.history) == channels.HISTORY
    assert pointer.history == tuple(sorted(pointer.history, key=lambda earlier: earlier.until, reverse=True))
