"""A storage in which something happens just before a chosen step: another actor's whole command, or death."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from searchforge.artifacts.workspace import Workspace
from searchforge.storage.base import FolderSnapshot, Storage

CHANGES = ("write", "delete", "upload", "replace", "now")
"""Calls that change something. Dying before any other call leaves the same state as dying before the next of these."""

CALLS = (*CHANGES, "read", "exists", "list_folders", "list_files", "snapshot", "read_version", "modified")


class KilledError(BaseException):
    """What ends a process here; no code catches it, as none catches a SIGKILL."""


def killed(*_: Any) -> None:
    """The event that is the death of the process."""
    raise KilledError


def dying(command: Callable[[Workspace], Any]) -> Callable[[Workspace], None]:
    """Returns what runs a command until it is killed."""

    def run(workspace: Workspace) -> None:
        with contextlib.suppress(KilledError):
            command(workspace)

    return run


class Steps:
    """Counts calls of a storage, and runs `event` before call number `at` (from 0).

    Args:
      calls: names of those that count.
      deletions: whether every object that a snapshot deletes counts as a call of its own.
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
            if self._inside:  # a part of another call, which may hold a lock
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
    """Deletes the objects of another snapshot one by one."""

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
    """Runs `command` undisturbed, then again with `event` just before one of its calls; returns the number of calls.

    Args:
      make: makes a fresh workspace and returns the function that opens it, as each process does for itself.
      verify: is called afterwards; errors of command and event are theirs to expect.
      every: 1: each call has its turn; n: each n-th.
      options: of Steps.
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
