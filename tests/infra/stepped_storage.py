"""A local storage in which something happens just before a chosen call: another actor's whole command, or death."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from searchforge.local_storage import LocalStorage
from searchforge.workspace import Workspace


class KilledError(BaseException):
    """What ends a process here; no code catches it, as none catches a SIGKILL."""


class SteppedStorage(LocalStorage):
    """Counts its calls, and runs `event` before call number `at` (from 0)."""

    def __init__(self, root: str, at: int = -1, event: Callable[[], Any] = lambda: None) -> None:
        super().__init__(root)
        self.calls, self._at, self._event, self._inside = 0, at, event, False

    def _step(self, name: str, *arguments: Any) -> Any:
        method = getattr(super(), name)
        if self._inside:  # a part of another call, which may hold a lock
            return method(*arguments)
        if self.calls == self._at:
            self.calls += 1
            self._event()
        else:
            self.calls += 1
        self._inside = True
        try:
            return method(*arguments)
        finally:
            self._inside = False


for _name in (
    "read",
    "write",
    "exists",
    "names",
    "files",
    "snapshot",
    "delete",
    "read_version",
    "replace",
    "modified",
    "now",
):

    def _method(self: SteppedStorage, *arguments: Any, _name: str = _name) -> Any:
        return self._step(_name, *arguments)

    setattr(SteppedStorage, _name, _method)


def stepped(root: str, at: int = -1, event: Callable[[], Any] = lambda: None) -> tuple[Workspace, SteppedStorage]:
    """Returns a workspace whose storage is a SteppedStorage."""
    workspace = Workspace(root)
    storage = SteppedStorage(root, at, event)
    workspace.storage = storage
    return workspace, storage


def interleave(
    make: Callable[[], str],
    command: Callable[[Workspace], Any],
    event: Callable[[Workspace], Any],
    verify: Callable[[Workspace], Any],
) -> int:
    """Runs `command` once for each of its calls, with `event` just before that call; returns the number of calls.

    Args:
      make: makes a fresh workspace and returns its root.
      verify: is called afterwards; errors of command and event are theirs to expect.
    """
    at, calls = 0, 1
    while at < calls:
        root = make()
        workspace, storage = stepped(root, at, lambda root=root: event(Workspace(root)))  # type: ignore[misc]
        command(workspace)
        calls = max(calls, storage.calls)
        verify(Workspace(root))
        at += 1
    return calls
