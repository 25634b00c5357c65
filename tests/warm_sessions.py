"""Processes of searchforge.isolated that start in milliseconds: forked from one that has imported everything.

They are the real ones, with the same pipes, in the caller's process group; only the imports are done before. Run as a
script, this module is the process that they are forked from: `python -m tests.warm_sessions SOCKET`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from searchforge import isolated

MODULES = ("indexer.worker", "indexer.text_embedder", "serving_check.task_library")
_IMPORTED = (
    *MODULES,
    "tensorflow_lite_support.python.task.text.text_searcher",
    "tensorflow_lite_support.python.task.text.text_embedder",
    "tensorflow_lite_support.python.task.vision.image_searcher",
    "tensorflow_lite_support.python.task.vision.image_embedder",
    "tflite_support.task",
    "tensorflow_lite_support.metadata.schema_py_generated",
    "tensorflow_lite_support.metadata.metadata_schema_py_generated",
    "tensorflow_lite_support.metadata.cc.python._pywrap_metadata_version",
)
_START_SECONDS = 120


@contextlib.contextmanager
def warm_sessions() -> Iterator[None]:
    """Inside, every isolated.Session of this process and of its forks starts warm."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        environment = {**os.environ, "PYTHONPATH": isolated.python_path()}
        server = subprocess.Popen([sys.executable, "-m", __name__, path], stdin=subprocess.PIPE, env=environment)
        cold = isolated.subprocess
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not Path(path).exists():
                assert server.poll() is None and time.monotonic() < deadline, "the warm process did not start"
                time.sleep(0.05)
            warm = {name: getattr(cold, name) for name in ("PIPE", "DEVNULL", "TimeoutExpired")}
            isolated.subprocess = SimpleNamespace(Popen=_Starter(path), **warm)  # type: ignore[attr-defined]
            yield
        finally:
            isolated.subprocess = cold  # type: ignore[attr-defined]
            assert server.stdin
            server.stdin.close()
            server.kill()
            server.wait()


def import_all() -> None:
    """Imports what a run of `reindex` needs without training, so that a fork of this process starts at once."""
    from searchforge.cli import import_quietly

    import_quietly("apache_beam")
    for name in ("beam_jobs.embed", "indexer.build", "serving_check.check", "ai_edge_litert.interpreter"):
        importlib.import_module(name)


class _Starter:
    """Stands where subprocess.Popen does."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, command: Sequence[str], *, stderr: Any, pass_fds: tuple[int], **_: Any) -> _Process:
        return _Process(self._path, command[-1], stderr.fileno(), pass_fds[0])


class _Process:
    """What isolated.Session uses of a subprocess.Popen."""

    def __init__(self, path: str, module: str, errors: int, replies: int) -> None:
        read_end, write_end = os.pipe()
        self.stdin = os.fdopen(write_end, "wb")
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        request = json.dumps({"module": module, "group": os.getpgrp()}).encode()
        socket.send_fds(self._connection, [request], [read_end, replies, errors])
        os.close(read_end)
        self._lines = self._connection.makefile("r")
        self.pid = int(self._lines.readline())
        self._code: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.001)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            self._connection.settimeout(timeout)
            try:
                self._code = int(self._connection.recv(16) or -signal.SIGKILL)
            except TimeoutError:
                raise subprocess.TimeoutExpired("warm session", timeout or 0.0) from None
            self._connection.close()
        return self._code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _serve(path: str) -> None:
    isolated.prepare()
    for name in _IMPORTED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.starting")
    listener.listen()
    Path(f"{path}.starting").rename(path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _watch(connection)
        connection.close()


def _watch(connection: socket.socket) -> None:
    """Forks a session and tells its pid and, when it has ended, its exit code."""
    data, (requests, replies, errors), _, _ = socket.recv_fds(connection, 4096, 3)
    request = json.loads(data)
    worker = os.fork()
    if worker == 0:
        connection.close()
        with contextlib.suppress(PermissionError, ProcessLookupError):  # the caller was killed meanwhile
            os.setpgid(0, request["group"])
        os.dup2(requests, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        os.close(requests)
        os.environ["SEARCHFORGE_REPLY_FD"] = str(replies)
        sys.stdin = open(0)  # noqa: SIM115
        code = 1
        try:
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    for descriptor in (requests, replies, errors):
        os.close(descriptor)
    with contextlib.suppress(OSError):
        connection.sendall(f"{worker}\n".encode())
        _, status = os.waitpid(worker, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
