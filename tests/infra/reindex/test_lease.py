"""The lease has one holder at a time, survives dead and hanging holders, and issues increasing fencing tokens."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from infra.reindex import lease
from infra.reindex.lease import LEASE, Lease, LeaseState, acquire
from searchforge.errors import ConflictError, JobError
from searchforge.storage.base import Storage
from searchforge.storage.local import LocalStorage
from tests.infra.manual_clock import ManualClock
from tests.infra.memory_storage import MemoryStorage

SECONDS = 60.0
"""Duration of leases, longer than any test: holders renew only when a test calls `check`."""


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


def _take(storage: Storage, run: str = "a", **options: Any) -> Lease:
    return acquire(storage, run, **{"lease_seconds": SECONDS, "clock": ManualClock(), **options})


def _foreign(storage: Storage, **fields: Any) -> LeaseState:
    """Writes the lease of a holder on another machine that does not renew it."""
    state = LeaseState(
        **{
            "state": "held",
            "fence": 5,
            "run": "far",
            "host": "elsewhere",
            "pid": 1,
            "machine": "elsewhere 1",
            "process": "1",
            "since": "2026-01-01T00:00:00+00:00",
            "lease_seconds": SECONDS,
            **fields,
        }
    )
    storage.write(LEASE, state.model_dump_json().encode())
    return state


def test_a_second_run_is_refused_with_the_holders_name(storage: MemoryStorage) -> None:
    clock = ManualClock(meanwhile=lambda: first.check())
    with (
        _take(storage, "first") as first,
        pytest.raises(ConflictError, match=rf"run first \(process {os.getpid()} on .*since 2"),
    ):
        _take(storage, "second", clock=clock)
    assert len(clock.slept) == 1, "it observes the holder until the next renewal"
    with _take(storage, "third") as third:
        assert third.fence == 2 and not third.taken_over


def test_a_second_run_waits_for_the_first_one(storage: MemoryStorage) -> None:
    first = _take(storage, "first")

    def meanwhile() -> None:
        if sum(clock.slept) < 3 * SECONDS:
            first.check()  # a live holder keeps its lease
        else:
            with first:
                pass

    clock = ManualClock(meanwhile)
    with _take(storage, "second", wait_seconds=9 * SECONDS, clock=clock) as second:
        assert second.fence == first.fence + 1 and not second.taken_over
    assert 3 * SECONDS <= sum(clock.slept) < 4 * SECONDS


def test_waiting_for_a_holder_times_out(storage: MemoryStorage) -> None:
    with _take(storage, "first") as first:
        clock = ManualClock(meanwhile=first.check)
        with pytest.raises(ConflictError, match="--wait SECONDS"):
            _take(storage, "second", wait_seconds=2 * SECONDS, clock=clock)
    assert 2 * SECONDS <= sum(clock.slept) < 3 * SECONDS


def test_a_holder_renews_its_lease_in_the_background(storage: MemoryStorage) -> None:
    with _take(storage, lease_seconds=0.02):
        while not (held := lease.read(storage)) or held.beat < 3:
            time.sleep(0.001)


def test_a_silent_holder_on_another_machine_loses_the_lease(storage: MemoryStorage) -> None:
    _foreign(storage)
    clock = ManualClock()
    with _take(storage, clock=clock) as taken:
        assert SECONDS <= sum(clock.slept) < SECONDS + 2
        assert (taken.taken_over, taken.fence) == ("far", 6)


def test_a_live_holder_with_a_wrong_clock_keeps_the_lease(storage: MemoryStorage) -> None:
    """Its counter increases, so it is alive; `since` is only for people."""
    held = _foreign(storage, since="1970-01-01T00:00:00+00:00")

    def beat() -> None:
        nonlocal held
        if sum(clock.slept) > SECONDS / 4:
            held = held.model_copy(update={"beat": held.beat + 1})
            storage.write(LEASE, held.model_dump_json().encode())

    clock = ManualClock(meanwhile=beat)
    with pytest.raises(ConflictError, match="run far"):
        _take(storage, clock=clock)


def _hold(root: str, taken: Any) -> None:
    _take(LocalStorage(root), "killed")
    taken.set()
    time.sleep(3600)


def test_a_killed_holder_on_this_machine_loses_the_lease_immediately(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    taken = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), taken), daemon=True)
    process.start()
    taken.wait()
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    clock = ManualClock()
    with _take(LocalStorage(str(tmp_path)), clock=clock) as after:
        assert (after.taken_over, after.fence) == ("killed", 2)
    assert clock.slept == [], "it is replaced immediately"


def test_a_reused_pid_is_not_mistaken_for_the_holder(storage: MemoryStorage) -> None:
    clock = ManualClock()
    with _take(storage, "gone"):
        held = lease.read(storage)
        assert held and held.pid == os.getpid()
        storage.write(LEASE, held.model_copy(update={"process": "0"}).model_dump_json().encode())
        with _take(storage, clock=clock) as taken:
            assert taken.taken_over == "gone"
    assert clock.slept == []


def test_a_former_holder_gets_an_error_and_does_not_release_the_lease(storage: MemoryStorage) -> None:
    with _take(storage, "old") as old:
        old.check()
        _foreign(storage, run="other", fence=9)
        with pytest.raises(ConflictError, match=r"run old lost the lease .* now held by run other .*publishes nothing"):
            old.check()
        with pytest.raises(ConflictError):
            old.check()
    held = lease.read(storage)
    assert held and (held.state, held.run) == ("held", "other")


def test_a_run_that_exceeds_its_maximum_duration_loses_the_lease(storage: MemoryStorage) -> None:
    hangs = ManualClock()
    with _take(storage, "hangs", max_seconds=10.0, clock=hangs) as hanging:
        hanging.check()
        hangs.sleep(10.0)
        with pytest.raises(JobError, match=r"run hangs exceeded reindex\.max_hours"):
            hanging.check()
        with _take(storage, "next") as taken:
            assert taken.taken_over == "hangs" and taken.fence > hanging.fence
        with pytest.raises((ConflictError, JobError)):
            hanging.check()


def test_the_background_renewal_stops_at_the_maximum_duration(storage: MemoryStorage) -> None:
    hangs = ManualClock()
    with _take(storage, lease_seconds=0.02, max_seconds=10.0, clock=hangs) as hanging:
        hangs.sleep(10.0)
        while any(thread.name == "lease" for thread in threading.enumerate()):
            time.sleep(0.001)
        with pytest.raises(JobError, match="exceeded"):
            hanging.check()


@pytest.mark.parametrize("content", [b"", b"{", b'{"state": "held"}', b'{"state": "held", "fence": -1}', b"\xff"])
def test_a_damaged_lease_is_replaced_with_a_greater_fence(
    storage: MemoryStorage, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with _take(storage) as first:
        storage.write(LEASE, content)
        with _take(storage, "b", known_fence=lambda: first.fence) as second:
            assert second.fence > first.fence
        with pytest.raises(ConflictError):
            first.check()
    assert "reindex/LEASE.json" in capsys.readouterr().err


def test_the_fence_exceeds_fences_recorded_elsewhere(storage: MemoryStorage) -> None:
    with _take(storage, known_fence=lambda: 41) as taken:
        assert taken.fence == 42
    with _take(storage, known_fence=lambda: 7) as taken:
        assert taken.fence == 43


def test_the_lease_is_released_after_an_exception(storage: MemoryStorage) -> None:
    with pytest.raises(RuntimeError), _take(storage):
        raise RuntimeError
    content = json.loads(storage.read(LEASE))
    assert content["state"] == "free" and content["fence"] == 1


class _LostAnswers(MemoryStorage):
    """Stores writes but loses the responses, so that a retried write conflicts with its own first attempt."""

    def replace(self, path: str, data: bytes, version: str) -> None:
        super().replace(path, data, version)
        raise ConflictError("somebody else replaced it")


def test_a_lost_response_does_not_lose_the_lease() -> None:
    storage = _LostAnswers()
    with _take(storage) as taken:
        taken.check()
        taken.check()
        held = lease.read(storage)
        assert held and held.beat == 2


class _Impatient:
    """The real clock with shortened sleeps."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float, /) -> None:
        time.sleep(min(seconds, 0.005))


def _count_up(root: str, number: int, rounds: int) -> None:
    storage = LocalStorage(root)
    for _ in range(rounds):
        with _take(LocalStorage(root), f"run-{number}", wait_seconds=600, clock=_Impatient()) as held:
            count = int(storage.read("count")) + 1
            time.sleep(0.002)
            storage.write("count", b"%d" % count)
            storage.write(f"fences/{held.fence}", b"")


@pytest.mark.parametrize(("processes", "rounds"), [(4, 5), pytest.param(8, 25, marks=pytest.mark.proof)])
def test_racing_processes_never_hold_the_lease_at_the_same_time(tmp_path: Path, processes: int, rounds: int) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("count", b"0")
    context = multiprocessing.get_context("fork")
    racing = [context.Process(target=_count_up, args=(storage.root, number, rounds)) for number in range(processes)]
    for process in racing:
        process.start()
    for process in racing:
        process.join()
    assert storage.read("count") == b"%d" % (processes * rounds)
    assert sorted(map(int, storage.list_files("fences"))) == list(range(1, processes * rounds + 1))
