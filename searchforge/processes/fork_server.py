"""Starts child processes in milliseconds by forking them from a server process that has imported their modules.

The server is started with the first child, is shared by this process and its forks, and ends with the last of them.
The fork server of multiprocessing is not suitable: its children import the parent's main module, and with it
TensorFlow, which the children of searchforge.processes.isolated must not load.

Run as a script, this module is the server: `python -m searchforge.processes.fork_server`, with a socket as standard
input.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from searchforge.errors import JobError
from searchforge.processes.tflite_support import prepare

REPLY_FD = "SEARCHFORGE_REPLY_FD"
"""Environment variable that contains the file descriptor for a child's replies."""

_ATTEMPTS = 3
"""Number of servers to start for a child, since a server may be killed."""

_MAX_REQUEST = 65536
"""Largest size in bytes of a request to the server, which contains a module and a folder."""


class Child:
    """A process that runs a module's main program, as `python -m MODULE` does.

    Attributes:
      pid: Process id.
      stdin: Binary file connected to its standard input; closing it ends the child.
      replies: Binary file connected to its REPLY_FD.
      errors: Temporary file that receives its standard error.
    """

    def __init__(self, module: str) -> None:
        """Starts the process.

        Raises:
          JobError: The server cannot be started.
        """
        # A file rather than a pipe, which would fill up and block the child.
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        stdin_read, stdin_write = os.pipe()
        replies_read, replies_write = os.pipe()
        self.stdin, self.replies = os.fdopen(stdin_write, "wb"), os.fdopen(replies_read, "rb")
        self._code: int | None = None
        try:
            self.pid, self._status = _fork(module, [stdin_read, replies_write, self.errors.fileno()])
        except BaseException:
            for file in (self.stdin, self.replies, self.errors):
                file.close()
            raise
        finally:
            for descriptor in (stdin_read, replies_write):
                os.close(descriptor)

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal, or None while the process is running."""
        with contextlib.suppress(TimeoutError):
            self.wait(None if self._hung_up(0) else 0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the process to end and returns its exit code, see `poll`.

        Args:
          timeout: Seconds; None for no limit.

        Raises:
          TimeoutError: The process is still running.
        """
        if self._code is None:
            if readable(self._status, timeout) and (line := self._status.readline()):
                self._code = int(line)
            elif self._status_lost() and self._hung_up(timeout):
                self._code = -signal.SIGKILL  # unknown, as the server was killed
            else:
                raise TimeoutError(f"process {self.pid} is still running after {timeout} s")
        return self._code

    def kill(self) -> None:
        """Sends SIGKILL unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _hung_up(self, timeout: float | None) -> bool:
        """Returns whether the process closed its end of `replies` by ending, which precedes the server's report."""
        return _polled(self.replies, 0, timeout)

    def _status_lost(self) -> bool:
        """Returns whether the server was killed, so that the exit code is lost."""
        return _polled(self._status, 0, 0)

    def close(self) -> None:
        """Closes the files; call it once the process has ended."""
        for file in (self.stdin, self.replies, self.errors, self._status):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def readable(file: BinaryIO, timeout: float | None) -> bool:
    """Waits until a pipe is readable or its writer has closed it; returns False on timeout.

    Args:
      timeout: Seconds; None for no limit.
    """
    return _polled(file, select.POLLIN, timeout)


def _polled(file: BinaryIO, events: int, timeout: float | None) -> bool:
    """Waits for one of the events on a pipe or for its other end to be closed; returns False on timeout."""
    poll = select.poll()  # select does not support descriptors from 1024 on
    poll.register(file, events)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


_lock = threading.Lock()
_server: socket.socket | None = None


def _renew_lock() -> None:
    """Replaces the lock in a fork of this process, where no thread would release it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _fork(module: str, descriptors: list[int]) -> tuple[int, BinaryIO]:
    """Requests a child from the server; returns its process id and the file that will contain its exit code.

    Raises:
      JobError: The server cannot be started, or was killed repeatedly.
    """
    global _server
    request = json.dumps({"module": module, "folder": str(Path.cwd()), "group": os.getpgrp()}).encode()
    for _ in range(_ATTEMPTS):
        with _lock:
            server = _server = _server or _start()
        status_read, status_write = os.pipe()
        status = os.fdopen(status_read, "rb")
        with contextlib.suppress(OSError):  # the server was killed
            socket.send_fds(server, [request], [*descriptors, status_write])
        os.close(status_write)
        if pid := status.readline():
            return int(pid), status
        status.close()
        with _lock:
            if _server is server:
                _server = None
    raise JobError(
        f"cannot start a process for {module}: the fork server ended {_ATTEMPTS} times without a reply; check its "
        "error above and the limits on memory and processes"
    )


def _start() -> socket.socket:
    """Starts the server and returns its socket, which keeps messages of several threads and forks separate."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        environment = {**os.environ, "PYTHONPATH": python_path(), "TF_CPP_MIN_LOG_LEVEL": "3"}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
        )
        process.returncode = 0  # it outlives this object, and ends when its clients have ended
    return ours


def python_path() -> str:
    """Returns a PYTHONPATH with which a process in any folder finds these packages."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


def _serve(requests: socket.socket) -> None:
    """Forks a child for each request until all clients have ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the clients, which ends the server
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}  # descriptors for exit codes of running children, by process id
    while True:
        ready, _, _ = select.select([requests.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _report_ended(statuses)
        if requests.fileno() not in ready:
            continue
        data, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 4)
        if not data:
            return
        request = json.loads(data)
        _import(request["module"])
        try:
            *files, status = descriptors
            child = os.fork()
        except (OSError, ValueError):  # too many processes or open files; the closed pipe informs the client
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        if child == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (*statuses.values(), wake_read, wake_write, status):
                os.close(descriptor)
            requests.detach()  # standard input, which the child replaces
            _run(request, *files)
        statuses[child] = status
        _write(status, child)
        for descriptor in files:
            os.close(descriptor)


def _report_ended(statuses: dict[int, int]) -> None:
    while statuses:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        if (descriptor := statuses.pop(child, None)) is not None:
            _write(descriptor, os.waitstatus_to_exitcode(status))
            os.close(descriptor)


def _write(descriptor: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the client has ended
        os.write(descriptor, f"{number}\n".encode())


def _import(module: str) -> None:
    """Imports a module and its IMPORTS, once. Errors are ignored here, because the child raises them again."""
    with contextlib.suppress(Exception):
        for name in getattr(importlib.import_module(module), "IMPORTS", ()):
            importlib.import_module(name)


def _run(request: dict[str, Any], stdin: int, replies: int, errors: int) -> NoReturn:
    """Runs the module's main program in the child, with files of its client, and ends the process."""
    code = 1
    try:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # another session, or the client was killed
            os.setpgid(0, request["group"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(stdin, 0)
        os.dup2(errors, 2)
        for descriptor in (stdin, errors):
            os.close(descriptor)
        sys.stdin = open(0)  # noqa: SIM115
        os.chdir(request["folder"])
        os.environ[REPLY_FD] = str(replies)
        sys.modules.pop(request["module"], None)  # runpy executes it again, as the main program
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    with contextlib.suppress(JobError):  # a child that needs it reports the error
        prepare()
    _serve(socket.socket(fileno=0))
