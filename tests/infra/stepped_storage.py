"""A storage in which something happens just before a chosen call: another actor's whole command, or death."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from searchforge.storage import Storage
from searchforge.workspace import Workspace

_CALLS = (
    "read",
    "write",
    "exists",
    "names",
    "files",
    "snapshot",
    "delete",
    "upload",
    "read_version",
    "replace",
    "modified",
    "now",
)


class KilledError(BaseException):
    """What ends a process here; no code catches it, as none catches a SIGKILL."""


class Steps:
    """Counts the calls of a storage, and runs `event` before call number `at` (from 0)."""

    def __init__(self, storage: Storage, at: int, event: Callable[[], Any]) -> None:
        self.calls, self._at, self._event, self._inside = 0, at, event, False
        for name in _CALLS:
            setattr(storage, name, self._stepping(getattr(storage, name)))

    def _stepping(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            if self._inside:  # a part of another call, which may hold a lock
                return method(*arguments)
            self.calls += 1
            if self.calls - 1 == self._at:
                self._event()
            self._inside = True
            try:
                return method(*arguments)
            finally:
                self._inside = False

        return step


def interleave(
    make: Callable[[], str],
    command: Callable[[Workspace], Any],
    event: Callable[[Workspace], Any],
    verify: Callable[[Workspace], Any],
) -> int:
    """Runs `command` undisturbed, then once for each of its calls with `event` just before it; returns their number.

    Args:
      make: makes a fresh workspace and returns its root.
      verify: is called afterwards; errors of command and event are theirs to expect.
    """
    at, calls = -1, 0
    while at < calls:
        root = make()
        workspace = Workspace(root)
        steps = Steps(workspace.storage, at, lambda root=root: event(Workspace(root)))  # type: ignore[misc]
        command(workspace)
        calls = max(calls, steps.calls)
        verify(Workspace(root))
        at += 1
    return calls
