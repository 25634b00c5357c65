"""A child process answers requests, and its errors and crashes are raised in the parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from searchforge.errors import JobError, UsageError
from searchforge.processes import isolated

MODULE = "tests.searchforge.processes.test_isolated"


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    match request["op"]:
        case "echo":
            print("native code may write to standard output")
            return {"pid": os.getpid(), "server": os.getppid(), "folder": str(Path.cwd()), "value": request["value"]}
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


def test_tensorflow_is_blocked_in_the_child() -> None:
    assert isolated.call(MODULE, {"op": "tensorflow"}) == {"blocked": True}


def test_a_usage_error_keeps_its_type() -> None:
    with pytest.raises(UsageError, match="bad value 3, expected 4"):
        isolated.call(MODULE, {"op": "usage"})


def test_an_unexpected_error_shows_its_stack_trace() -> None:
    with pytest.raises(isolated.ChildCrash, match="ZeroDivisionError: a bug"):
        isolated.call(MODULE, {"op": "bug"})


def test_a_native_crash_reports_the_signal() -> None:
    with pytest.raises(JobError, match="ended with signal 11") as error:
        isolated.call(MODULE, {"op": "crash"})
    assert isinstance(error.value, isolated.ChildCrash)
    assert error.value.returncode == -signal.SIGSEGV


def test_a_child_that_hangs_is_killed_after_the_timeout() -> None:
    with isolated.Session(MODULE) as session:
        pid = session.call({"op": "echo", "value": 0}, timeout=60)["pid"]
        with pytest.raises(isolated.ChildCrash, match=r"did not reply within 0\.5 s"):
            session.call({"op": "hang"}, timeout=0.5)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_closing_a_session_ends_its_process() -> None:
    with isolated.Session(MODULE) as session:
        pid = session.call({"op": "echo", "value": 0})["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _server() -> int:
    return int(isolated.call(MODULE, {"op": "echo", "value": 0})["server"])


def test_sessions_of_threads_and_server_of_forks_share_the_imports() -> None:
    server = _server()
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: _server(), range(24))) == {server}
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as forks:
        assert set(forks.map(_server_of_fork, range(8))) == {server}


def _server_of_fork(_: int) -> int:
    return _server()


def test_a_session_runs_in_the_folder_of_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _server()
    monkeypatch.chdir(tmp_path)
    assert isolated.call(MODULE, {"op": "echo", "value": 0})["folder"] == str(tmp_path)


def test_the_end_of_a_child_is_detected_at_once() -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV):
        with isolated.Session(MODULE) as session:
            session.call({"op": "echo", "value": 0})
            assert not session.ended
            os.kill(session.pid, number)
            while not session.ended:
                time.sleep(0.001)
            with pytest.raises(isolated.ChildCrash, match=f"ended with signal {number.value}"):
                session.call({"op": "echo", "value": 0})


def test_sessions_outlive_a_killed_server_which_is_replaced() -> None:
    with isolated.Session(MODULE) as session:
        server = session.call({"op": "echo", "value": 0})["server"]
        os.kill(server, signal.SIGKILL)
        assert session.call({"op": "echo", "value": 1})["value"] == 1
        assert _server() != server
        assert not session.ended
        with pytest.raises(isolated.ChildCrash, match=r"did not reply within 0\.1 s"):
            session.call({"op": "hang"}, timeout=0.1)
        assert session.ended


def test_the_server_ends_with_the_process_that_started_it() -> None:
    code = "from tests.searchforge.processes.test_isolated import _server; print(_server())"
    server = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    stat = Path(f"/proc/{int(server)}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)


if __name__ == "__main__":
    isolated.serve(_handle)
