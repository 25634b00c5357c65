"""Interleaves storage calls: runs another command, or simulates a kill, just before a chosen call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from searchforge.artifacts.workspace import Workspace
from searchforge.storage.base import FolderSnapshot, Storage

CHANGES = ("write", "delete", "upload", "replace", "now")
"""Calls that change the storage. A kill before a read has the same effect as one before the next of these calls."""

CALLS = (*CHANGES, "read", "exists", "list_folders", "list_files", "snapshot", "read_version", "modified")


class KilledError(BaseException):
    """Simulates a SIGKILL; no code under test catches it."""


def killed(*_: Any) -> None:
    """Kills the process; an event for Steps."""
    raise KilledError


def dying(command: Callable[[Workspace], Any]) -> Callable[[Workspace], None]:
    """Returns a function that runs a command and suppresses the simulated kill."""

    def run(workspace: Workspace) -> None:
        with contextlib.suppress(KilledError):
            command(workspace)

    return run


class Steps:
    """Counts the calls of a storage and runs `event` before call number `at`, counted from 0.

    Args:
      calls: Names of the methods to count.
      deletions: Whether every object that a snapshot deletes counts as a separate call.
    """

    def __init__(
        self, storage: Storage, at: int, event: Callable[[], Any], calls: Iterable[str] = CALLS, deletions: bool = True
    ) -> None:
        self.calls, self._at, self._event, self._inside = 0, at, event, False
        for name in calls:
            setattr(storage, name, self._stepping(getattr(storage, name)))
        if deletions:
            snapshot = storage.snapshot

            @contextlib.contextmanager
            def stepped(folder: str) -> Iterator[FolderSnapshot]:
                with snapshot(folder) as found:
                    yield _SteppedSnapshot(found, self._step)

            storage.snapshot = stepped  # type: ignore[method-assign]

    def _stepping(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            if self._inside:  # nested in another call, which may hold a lock
                return method(*arguments)
            self._step()
            self._inside = True
            try:
                return method(*arguments)
            finally:
                self._inside = False

        return step

    def _step(self) -> None:
        self.calls += 1
        if self.calls - 1 == self._at:
            self._event()


class _SteppedSnapshot(FolderSnapshot):
    """Wraps a snapshot and deletes its objects one by one."""

    def __init__(self, snapshot: FolderSnapshot, step: Callable[[], None]) -> None:
        self.objects, self._snapshot, self._step = snapshot.objects, snapshot, step

    def delete(self, first: str = "") -> None:
        for name in sorted(self.objects, key=lambda name: (name != first, name)):
            self._step()
            self._snapshot.objects = {name: self.objects[name]}
            self._snapshot.delete()


def interleave(
    make: Callable[[], Callable[[], Workspace]],
    command: Callable[[Workspace], Any],
    event: Callable[[Workspace], Any],
    verify: Callable[[Workspace], Any],
    every: int = 1,
    **options: Any,
) -> int:
    """Runs `command` uninterrupted, then again with `event` before each of its calls; returns the number of calls.

    Args:
      make: Creates a workspace and returns a function that opens it, as separate processes would.
      command: Command to interrupt; it must handle the errors that it expects.
      event: Command or kill that interrupts; it must handle the errors that it expects.
      verify: Called with the workspace after every run.
      every: Interval of the calls that are tried; 1 tries each one.
      options: Options of Steps.
    """
    at, calls = -1, 0
    while at < calls:
        opened = make()
        workspace = opened()
        steps = Steps(workspace.storage, at, lambda opened=opened: event(opened()), **options)  # type: ignore[misc]
        command(workspace)
        calls = max(calls, steps.calls)
        verify(opened())
        at += every if at >= 0 else 1
    return calls
