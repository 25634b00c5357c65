"""Child processes for tflite-support, which cannot share a process with TensorFlow.

The child blocks TensorFlow, loads libusb (which tflite-support's native code is linked to) and answers requests: one
JSON object per line on standard input, one JSON object per line on a separate pipe. Native code that writes to standard
output therefore cannot corrupt a reply, and a native crash raises an error in the parent instead of ending it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from searchforge.errors import JobError, SearchforgeError, UsageError
from searchforge.processes.fork_server import REPLY_FD, Child, readable
from searchforge.processes.tflite_support import prepare


class ChildCrash(JobError):
    """The child process ended without a reply.

    Attributes:
      returncode: Exit code of the process; negative for a signal.
    """

    def __init__(self, message: str, returncode: int) -> None:
        super().__init__(message)
        self.returncode = returncode


class Session:
    """A child process that answers requests until it is closed; a context manager."""

    def __init__(self, module: str) -> None:
        """Starts a process that runs `module`, whose main program calls `serve`.

        Modules listed in its IMPORTS are imported once for all its sessions; see searchforge.processes.fork_server.
        """
        self._module = module
        self._child = Child(module)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    @property
    def ended(self) -> bool:
        """Whether the child has ended."""
        return self._child.poll() is not None

    def call(self, request: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Sends a request and returns the reply.

        Args:
          timeout: Seconds after which the child is killed; None for no limit.

        Raises:
          UsageError, JobError: The child raised this error.
          ChildCrash: The child ended without a reply, or was killed.
        """
        child = self._child
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            if timeout is not None and not readable(child.replies, timeout):
                child.kill()
                raise ChildCrash(f"{self._module} did not reply within {timeout:g} s", child.wait())
            line = child.replies.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise self._crash()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise (UsageError if reply["exit_code"] == UsageError.exit_code else JobError)(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """Ends the child. Further calls have no effect."""
        if self._child.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(timeout=10)
        except TimeoutError:
            self._child.kill()
            self._child.wait()
        self._child.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _crash(self) -> ChildCrash:
        code = self._child.wait()
        self._child.errors.seek(0)
        errors = self._child.errors.read().decode(errors="replace").strip()
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        return ChildCrash(f"{self._module} ended with {ending} before it replied:\n{errors[-2000:]}", code)


def call(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """Answers one request in a child process; see `Session.call` for errors."""
    with Session(module) as session:
        return session.call(request)


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers requests with `handle` in the child until standard input ends.

    SearchforgeErrors are sent to the parent; any other error ends the child with its stack trace.
    """
    prepare()
    descriptor = int(os.environ[REPLY_FD])
    with os.fdopen(descriptor, "wb") as replies:
        for line in sys.stdin.buffer:
            try:
                reply: dict[str, Any] = {"result": handle(json.loads(line))}
            except SearchforgeError as error:
                reply = {"error": str(error), "exit_code": error.exit_code}
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()
