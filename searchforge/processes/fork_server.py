"""Starts child processes in milliseconds: each is forked from one server process that has their imports behind it.

The server is started with the first child, belongs to this process and its forks, and ends with the last of them.
multiprocessing has a fork server, too, but its children import the parent's main module, and with it TensorFlow,
which the children of searchforge.processes.isolated must not load.

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
"""Environment variable of a child: the file descriptor that its replies are written to."""

_ATTEMPTS = 3
"""Servers that are started for a child: one that was killed is replaced."""

_MAX_REQUEST = 65536
"""Bytes of a request to the server, which names a module and a folder."""


class Child:
    """A process that runs a module's main program, as `python -m MODULE` does.

    Attributes:
      pid: its process id.
      stdin: its standard input, a binary file; closing it tells the child to end.
      replies: what it writes to REPLY_FD, a binary file.
      errors: what it writes to standard error, a temporary file.
    """

    def __init__(self, module: str) -> None:
        """Starts the process.

        Raises:
          JobError: the server cannot be started.
        """
        # A file: a pipe that nobody reads would fill and block the child.
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
        """Returns the exit code (negative: the signal that ended the process), or None while the process runs."""
        with contextlib.suppress(TimeoutError):
            self.wait(None if self._hung_up(0) else 0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the process to end and returns its exit code, see `poll`.

        Args:
          timeout: seconds; None waits for ever.

        Raises:
          TimeoutError: the process still runs.
        """
        if self._code is None:
            if readable(self._status, timeout) and (line := self._status.readline()):
                self._code = int(line)
            elif self._status_lost() and self._hung_up(timeout):
                self._code = -signal.SIGKILL  # not known, for the server was killed
            else:
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self._code

    def kill(self) -> None:
        """Sends SIGKILL; a process that has ended is left alone."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _hung_up(self, timeout: float | None) -> bool:
        """Whether the process has closed its end of `replies`, as it does by ending, before the server reports that."""
        return _polled(self.replies, 0, timeout)

    def _status_lost(self) -> bool:
        """Whether the server was killed, so that nobody can report the exit code."""
        return _polled(self._status, 0, 0)

    def close(self) -> None:
        """Closes the files of a process that has ended."""
        for file in (self.stdin, self.replies, self.errors, self._status):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def readable(file: BinaryIO, timeout: float | None) -> bool:
    """Returns whether a pipe can be read, or has no writer any more, within a time.

    Args:
      timeout: seconds; None waits for ever.
    """
    return _polled(file, select.POLLIN, timeout)


def _polled(file: BinaryIO, events: int, timeout: float | None) -> bool:
    """Returns whether a pipe shows one of the events, or that its other end was closed, within a time in seconds."""
    poll = select.poll()  # select would refuse descriptors from 1024 on
    poll.register(file, events)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


_lock = threading.Lock()
_server: socket.socket | None = None


def _renew_lock() -> None:
    """Gives a fork of this process a lock that no thread holds."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _fork(module: str, descriptors: list[int]) -> tuple[int, BinaryIO]:
    """Has the server fork a child; returns its process id and the file in which its exit code will be.

    Raises:
      JobError: the server cannot be started, or is killed again and again.
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
        f"no process can be started for {module}: its server ended {_ATTEMPTS} times before it answered; look for its "
        "error above, and for a lack of memory or processes"
    )


def _start() -> socket.socket:
    """Starts the server and returns the socket that reaches it; requests of several threads and forks do not mix."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        environment = {**os.environ, "PYTHONPATH": python_path(), "TF_CPP_MIN_LOG_LEVEL": "3"}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
        )
        process.returncode = 0  # it outlives this object, and ends by itself
    return ours


def python_path() -> str:
    """Returns the PYTHONPATH with which another process finds these packages, wherever it starts."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


def _serve(requests: socket.socket) -> None:
    """Forks a child for each request until nobody can send one any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends whoever needs the server, and that ends it
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}  # descriptors of running children, by process id
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
        except (OSError, ValueError):  # too many processes or open files: the caller learns it by a closed pipe
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        if child == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (*statuses.values(), wake_read, wake_write, status):
                os.close(descriptor)
            requests.detach()  # standard input, which the child replaces by its own
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
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know
        os.write(descriptor, f"{number}\n".encode())


def _import(module: str) -> None:
    """Imports a module, and what it names in IMPORTS, unless that has been done; a child shows what is wrong."""
    with contextlib.suppress(Exception):
        for name in getattr(importlib.import_module(module), "IMPORTS", ()):
            importlib.import_module(name)


def _run(request: dict[str, Any], stdin: int, replies: int, errors: int) -> NoReturn:
    """Is the child: runs the module's main program with the files of its parent, and ends."""
    code = 1
    try:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # another session, or the parent was killed
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
        sys.modules.pop(request["module"], None)  # it is run again, as the main program
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
    with contextlib.suppress(JobError):  # the child that needs it reports what is wrong
        prepare()
    _serve(socket.socket(fileno=0))
