"""One holder at a time, whoever dies or hangs; a greater fence with every acquisition; a lost lease is noticed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.reindex import lease
from infra.reindex.lease import LEASE, Lease, State, acquire
from searchforge.errors import ConflictError, JobError
from searchforge.local_storage import LocalStorage

SECONDS = 1.0
"""Of the leases here: shorter ones are not allowed by the configuration."""


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path))


def _take(storage: LocalStorage, run: str = "a", **options: Any) -> Lease:
    return acquire(storage, run, **{"lease_seconds": SECONDS, **options})


def _foreign(storage: LocalStorage, **fields: Any) -> State:
    """Writes the lease of a holder on another machine, who does not renew it."""
    state = State(
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


def test_a_second_run_leaves_and_says_who_holds_the_lease(storage: LocalStorage) -> None:
    with (
        _take(storage, "first"),
        pytest.raises(ConflictError, match=rf"run first \(process {os.getpid()} on .*since 2"),
    ):
        _take(storage, "second")
    with _take(storage, "third") as third:
        assert third.fence == 2 and not third.taken_over


def test_a_second_run_waits_for_the_first_one(storage: LocalStorage) -> None:
    first = _take(storage, "first")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_take, storage, "second", wait_seconds=60)
        time.sleep(1.5 * SECONDS)  # it lives, so it is not taken over
        first.check()
        assert not waiting.done()
        with first:
            pass
        with waiting.result() as second:
            assert second.fence == first.fence + 1 and not second.taken_over


def test_a_holder_on_another_machine_that_falls_silent_is_taken_over(storage: LocalStorage) -> None:
    _foreign(storage)
    start = time.monotonic()
    with _take(storage) as taken:
        assert time.monotonic() - start >= SECONDS
        assert (taken.taken_over, taken.fence) == ("far", 6)


def test_a_holder_on_another_machine_whose_clock_is_wrong_is_left_alone(storage: LocalStorage) -> None:
    """It lives, for its count grows: `since` is for people."""
    state = _foreign(storage, since="1970-01-01T00:00:00+00:00")
    ended = threading.Event()

    def beat() -> None:
        held = state
        while not ended.wait(SECONDS / 4):
            held = held.model_copy(update={"beat": held.beat + 1})
            storage.write(LEASE, held.model_dump_json().encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConflictError, match="run far"):
            _take(storage)
    finally:
        ended.set()
        thread.join()


def _hold(root: str, taken: Any) -> None:
    _take(LocalStorage(root), "killed", lease_seconds=3600.0)
    taken.set()
    time.sleep(3600)


def test_a_killed_holder_on_this_machine_is_taken_over_at_once(storage: LocalStorage) -> None:
    context = multiprocessing.get_context("fork")
    taken = context.Event()
    process = context.Process(target=_hold, args=(storage.root, taken), daemon=True)
    process.start()
    taken.wait()
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with _take(storage) as after:  # not after an hour
        assert (after.taken_over, after.fence) == ("killed", 2)


def test_a_pid_that_was_given_out_again_is_not_the_holder(storage: LocalStorage) -> None:
    _foreign(storage, pid=os.getpid(), machine=lease._machine(), process="0", lease_seconds=3600.0)
    with _take(storage) as taken:
        assert taken.taken_over == "far"


def test_a_holder_that_lost_the_lease_is_told_and_frees_nothing(storage: LocalStorage) -> None:
    with _take(storage, "old", lease_seconds=3600.0) as old:
        old.check()
        _foreign(storage, run="other", fence=9)
        with pytest.raises(ConflictError, match=r"run old lost the lease .* belongs to run other .*publishes nothing"):
            old.check()
        with pytest.raises(ConflictError):
            old.check()
    held = lease.read(storage)
    assert held and (held.state, held.run) == ("held", "other")


def test_a_run_that_lasts_too_long_is_taken_for_dead(storage: LocalStorage) -> None:
    with _take(storage, "hangs", max_seconds=0.01) as hanging:
        with _take(storage, "next") as taken:
            assert taken.taken_over == "hangs" and taken.fence > hanging.fence
        with pytest.raises((ConflictError, JobError)):
            hanging.check()


def test_a_run_is_told_that_it_lasts_too_long(storage: LocalStorage) -> None:
    with _take(storage, max_seconds=0.01) as taken:
        time.sleep(0.02)
        with pytest.raises(JobError, match=r"run a lasts longer than reindex\.max_hours allows"):
            taken.check()


@pytest.mark.parametrize("content", [b"", b"{", b'{"state": "held"}', b'{"state": "held", "fence": -1}', b"\xff"])
def test_a_damaged_lease_is_written_anew_with_a_greater_fence(
    storage: LocalStorage, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with _take(storage) as first:
        storage.write(LEASE, content)
        with _take(storage, "b", known_fence=lambda: first.fence) as second:
            assert second.fence > first.fence
        with pytest.raises(ConflictError):
            first.check()
    assert "reindex/LEASE.json" in capsys.readouterr().err


def test_the_fence_is_greater_than_any_that_is_known_from_elsewhere(storage: LocalStorage) -> None:
    with _take(storage, known_fence=lambda: 41) as taken:
        assert taken.fence == 42
    with _take(storage, known_fence=lambda: 7) as taken:
        assert taken.fence == 43


def test_the_lease_is_free_at_the_end_also_of_a_failure(storage: LocalStorage) -> None:
    with pytest.raises(RuntimeError), _take(storage):
        raise RuntimeError
    content = json.loads(storage.read(LEASE))
    assert content["state"] == "free" and content["fence"] == 1


class _LostAnswers(LocalStorage):
    """Its writes arrive, their answers do not: a client that tries again is refused for its own first attempt."""

    def replace(self, path: str, data: bytes, version: str) -> None:
        super().replace(path, data, version)
        raise ConflictError("somebody else replaced it")


def test_a_write_whose_answer_was_lost_is_not_taken_for_another_run(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "open_storage", _LostAnswers)
    with _take(storage, lease_seconds=3600.0) as taken:
        taken.check()
        taken.check()
        held = lease.read(storage)
        assert held and held.beat == 2


def _count_up(root: str, number: int) -> None:
    storage = LocalStorage(root)
    for _ in range(5):
        with _take(storage, f"run-{number}", wait_seconds=600) as held:
            count = int(storage.read("count")) + 1
            time.sleep(0.002)
            storage.write("count", b"%d" % count)
            storage.write(f"fences/{held.fence}", b"")


def test_racing_processes_never_hold_it_together(storage: LocalStorage) -> None:
    storage.write("count", b"0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count_up, args=(storage.root, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert storage.read("count") == b"20"
    assert sorted(map(int, storage.files("fences"))) == list(range(1, 21))
