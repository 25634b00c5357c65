"""Under any network or service fault, publishing succeeds, or fails cleanly with the live release unchanged."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.releases import channels
from infra.releases.pruning import prune
from infra.releases.releases import find_release, list_releases, live_release, publish, require_complete, rollback
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError
from searchforge.storage.gcs import GcsStorage
from searchforge.storage.gcs_client import RetryPolicy, crc32c_file
from tests.infra.releases.sample_artifacts import FILES, commit_checked
from tests.integration.faulty_proxy import Fault, FaultyProxy, Request, faulty_proxy, one_write_per_second

pytestmark = pytest.mark.integration


POLICY = RetryPolicy(timeout_seconds=(1.0, 0.7), retry_seconds=30.0, first_delay_seconds=0.02, chunk_bytes=1 << 20)


@pytest.fixture
def proxy(gcs_host: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Yields a proxy that clients created by the test use."""
    with faulty_proxy(gcs_host) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.fixture
def storage(proxy: FaultyProxy, bucket: str) -> GcsStorage:
    return GcsStorage(f"{bucket}/apps", POLICY)


@pytest.fixture
def target(storage: GcsStorage, tmp_path: Path) -> Workspace:
    """Returns the workspace to publish to."""
    return Workspace(str(tmp_path / "copies"), storage)


@pytest.fixture
def source(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


@pytest.mark.parametrize("fault", ["503", "429", "refused", "lost", "cut", "slow", "timeout"])
def test_transient_faults_are_retried(proxy: FaultyProxy, target: Workspace, source: Workspace, fault: Fault) -> None:
    checks = [commit_checked(source, name, kilobytes=20) for name in ("a", "b")]
    rng = random.Random(7)
    rate = 0.1 if fault == "timeout" else 0.3
    proxy.reset(lambda request: fault if rng.random() < rate else "")
    first, second = (publish(source, target, check).id for check in checks)
    assert live_release(target) == second
    assert rollback(target).id == first == live_release(target)
    assert (find_release(target)[1] / FILES[0]).read_text().startswith(f"a {FILES[0]}")
    assert {release.id for release in list_releases(target)} == {first, second}
    pointer = channels.read(target.storage).pointer
    assert (pointer.serial, pointer.withdrawn) == (4, (second,)), "a write of the pointer was repeated"
    assert prune(target, keep=1, min_age_days=0).kept == 2
    assert len(proxy.faults) > 3


def test_reading_the_storage_clock_stays_within_the_write_limit_of_an_object(
    proxy: FaultyProxy, storage: GcsStorage
) -> None:
    proxy.reset(one_write_per_second())
    times = [storage.now() for _ in range(30)]
    assert times == sorted(times)
    assert not proxy.faults


def test_publishing_succeeds_within_the_write_limit_of_an_object(
    proxy: FaultyProxy, target: Workspace, source: Workspace
) -> None:
    checks = [commit_checked(source, name) for name in ("a", "b")]
    refused: list[str] = []
    limit = one_write_per_second()

    def plan(request: Request) -> Fault:
        fault = limit(request)
        if fault:
            refused.append(request.uploads)
        return fault

    proxy.reset(plan)
    first, second = (publish(source, target, check).id for check in checks)
    assert live_release(target) == second
    assert rollback(target).id == first == live_release(target)
    assert all(name.endswith("CURRENT.json") for name in refused), "only the pointer has to be rewritten"


@pytest.mark.parametrize("fault", ["lost", "timeout", "503"])
def test_a_pointer_write_with_a_lost_response_is_recognized(
    proxy: FaultyProxy, target: Workspace, source: Workspace, fault: Fault
) -> None:
    publish(source, target, commit_checked(source, "a"))
    before, failed = channels.read(target.storage).pointer, []

    def plan(request: Request) -> Fault:
        if request.method == "POST" and "uploadType=multipart" in request.path and not failed and armed:
            failed.append(request)
            return fault
        return ""

    armed = False
    proxy.reset(plan)
    current = channels.read(target.storage)
    armed = True
    channels.write(target.storage, current, target.storage.modified("releases/CURRENT.json"), fence=5)
    after = channels.read(target.storage).pointer
    assert failed and (after.serial, after.fence) == (before.serial + 1, 5)


@pytest.mark.parametrize("fault", ["503", "403", "refused"])
def test_an_outage_at_any_request_leaves_the_live_release_unchanged(
    proxy: FaultyProxy, bucket: str, source: Workspace, fault: Fault, tmp_path: Path
) -> None:
    """Every request fails from the n-th of a publication on, for every second or third n until publishing succeeds."""
    target = Workspace(str(tmp_path / "copies"), GcsStorage(f"{bucket}/apps", replace(POLICY, retry_seconds=0.05)))
    live = publish(source, target, commit_checked(source, "a")).id
    attempts, step, complete = 0, 2 if fault == "403" else 3, {live}
    while True:
        check = commit_checked(source, f"b{attempts}")
        first = attempts * step
        proxy.reset(lambda request, first=first: fault if request.number >= first else "")  # type: ignore[misc]
        try:
            release = publish(source, target, check).id
            failed = False
        except JobError as error:
            failed = True
            assert f"{bucket}/apps" in str(error) and "cannot be used" in str(error)
        proxy.reset(lambda request: "")
        for id in {*target.ids("releases")} - complete:
            require_complete(target, id)
            complete.add(id)
        if not failed:
            break
        assert live_release(target) == live
        attempts += 1
    assert live_release(target) == release and attempts > 3
    assert publish(source, target, "check-b0-True").live, "a failed publication cannot be repeated"


@pytest.mark.parametrize("fault", ["410", "lost", "503", "refused", "timeout"])
def test_a_resumable_upload_survives_a_fault(
    proxy: FaultyProxy, storage: GcsStorage, tmp_path: Path, fault: Fault
) -> None:
    """The file is larger than 8 MiB, which Google's client uploads in one request."""
    file = tmp_path / "large"
    file.write_bytes(random.Random(0).randbytes(8 * 2**20 + 17))
    puts = iter(range(1000))
    proxy.reset(lambda request: fault if request.method == "PUT" and next(puts) == 2 else "")
    storage.upload(file, "large")
    assert proxy.faults == [fault]
    proxy.reset(lambda request: "")
    copy = tmp_path / "copy"
    copy.write_bytes(storage.read("large"))
    assert crc32c_file(copy) == crc32c_file(file)


@pytest.mark.parametrize("command", ["read", "download", "rollback"])
def test_corruption_in_transit_is_detected(
    proxy: FaultyProxy, target: Workspace, source: Workspace, tmp_path: Path, command: str
) -> None:
    first, second = (publish(source, target, commit_checked(source, name)).id for name in ("a", "b"))
    commands: dict[str, Callable[[], object]] = {
        "read": lambda: target.storage.read(f"releases/{first}/{FILES[0]}"),
        "download": lambda: target.storage.download_folder(f"releases/{first}", tmp_path / "copy"),
        "rollback": lambda: rollback(target),
    }
    proxy.reset(lambda request: "corrupt" if "alt=media" in request.path and FILES[0] in request.path else "")
    with pytest.raises(Exception, match=r"cannot be used|damaged"):
        commands[command]()
    proxy.reset(lambda request: "")
    assert live_release(target) == second


def test_an_interrupted_read_is_resumed(proxy: FaultyProxy, storage: GcsStorage) -> None:
    data = random.Random(0).randbytes(3 * 2**20)
    storage.write("data", data)
    gets = iter(range(1000))
    proxy.reset(lambda request: "cut" if "alt=media" in request.path and next(gets) < 2 else "")
    assert storage.read("data") == data and proxy.faults == ["cut", "cut"]
