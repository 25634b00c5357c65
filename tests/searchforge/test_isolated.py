"""A child process answers requests; its errors and its crashes become the parent's errors."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import pytest

from searchforge import isolated
from searchforge.errors import JobError, UsageError

MODULE = "tests.searchforge.test_isolated"


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    match request["op"]:
        case "echo":
            print("native code may write to standard output")
            return {"pid": os.getpid(), "value": request["value"]}
        case "tensorflow":
            return {"blocked": sys.modules["tensorflow"] is None}
        case "usage":
            raise UsageError("bad value 3, expected 4")
        case "hang":
            time.sleep(600)
            return {}
        case "bug":
            raise ZeroDivisionError("a bug")
        case _:
            os.kill(os.getpid(), signal.SIGSEGV)
            return {}


def test_one_process_answers_many_requests() -> None:
    with isolated.Session(MODULE) as session:
        answers = [session.call({"op": "echo", "value": value}) for value in ("a", "ü" * 100_000)]
    assert [answer["value"] for answer in answers] == ["a", "ü" * 100_000]
    assert len({answer["pid"] for answer in answers} - {os.getpid()}) == 1


def test_tensorflow_is_blocked_there() -> None:
    assert isolated.call(MODULE, {"op": "tensorflow"}) == {"blocked": True}


def test_a_users_error_keeps_its_kind() -> None:
    with pytest.raises(UsageError, match="bad value 3, expected 4"):
        isolated.call(MODULE, {"op": "usage"})


def test_a_bug_shows_its_trace() -> None:
    with pytest.raises(isolated.ChildCrash, match="ZeroDivisionError: a bug"):
        isolated.call(MODULE, {"op": "bug"})


def test_a_native_crash_names_the_signal() -> None:
    with pytest.raises(JobError, match="ended with signal 11") as error:
        isolated.call(MODULE, {"op": "crash"})
    assert isinstance(error.value, isolated.ChildCrash)
    assert error.value.returncode == -signal.SIGSEGV


def test_a_child_that_hangs_is_killed_in_time() -> None:
    with isolated.Session(MODULE) as session:
        pid = session.call({"op": "echo", "value": 0}, timeout=60)["pid"]
        with pytest.raises(isolated.ChildCrash, match=r"did not answer within 0\.5 s"):
            session.call({"op": "hang"}, timeout=0.5)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_session_ends_its_process() -> None:
    with isolated.Session(MODULE) as session:
        pid = session.call({"op": "echo", "value": 0})["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


if __name__ == "__main__":
    isolated.serve(_handle)
