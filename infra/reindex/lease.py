"""The lease of a workspace: one run at a time, whatever dies.

    reindex/LEASE.json

The holder renews it by a count that grows. Whoever wants it watches with a clock of its own: content that did not
change for `lease_seconds` has no living holder. No two machines' clocks are ever compared. Every acquisition has a
greater `fence` than all before it; a publisher with a smaller one than a release channel has seen is refused, so that a
holder that was taken for dead and wakes up can do no harm.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.reindex import journal
from searchforge.clock import Clock
from searchforge.errors import ConflictError, JobError
from searchforge.storage.base import Storage

logger = logging.getLogger(__name__)

LEASE = "reindex/LEASE.json"

_BEATS = 4
"""Renewals in `lease_seconds`."""

_POLL_SECONDS = 1.0

_UNWRITTEN = 1000
"""Most acquisitions that a damaged lease may have counted, and the journal not."""


class State(BaseModel):
    """Content of LEASE.json.

    Attributes:
      fence: of the latest acquisition.
      run, host, pid, since: of the holder; `since` in UTC, ISO 8601, for people only.
      machine, process: tell whether the holder can be seen from here, and whether that pid is still the same process.
      beat: grows with every renewal.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    state: Literal["held", "free"]
    fence: int = Field(ge=0)
    run: str = ""
    host: str = ""
    pid: int = 0
    machine: str = ""
    process: str = ""
    since: str = ""
    beat: int = 0
    lease_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def holder(self) -> str:
        """Who holds it since when, for people."""
        return f"run {self.run} (process {self.pid} on {self.host}, since {self.since})"

    @property
    def died_here(self) -> bool:
        """Whether the holder ran on this very machine, and is known to have ended."""
        return bool(self.machine) and self.machine == _machine() and _process(self.pid) != self.process


class Lease:
    """A held lease, renewed in the background. Use as a context manager, which frees it.

    Attributes:
      fence: greater than that of every earlier holder.
      taken_over: id of the run that died with it; empty where it was free.
    """

    def __init__(
        self, storage: Storage, state: State, max_seconds: float | None, taken_over: str, clock: Clock
    ) -> None:
        self.fence, self.taken_over = state.fence, taken_over
        self._storage, self._state, self._clock = storage, state, clock
        self._deadline = clock.monotonic() + max_seconds if max_seconds else None
        self._lost = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Renews the lease, so that whoever returns from here held it a moment ago.

        Raises:
          ConflictError: another run took it over.
          JobError: the run has lasted too long, or the storage cannot be reached.
        """
        self._renew()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with self._lock:
            if self._lost:
                return
            try:
                _replace(self._storage, self._state, State(state="free", fence=self.fence))
            except (ConflictError, JobError, OSError) as failure:
                logger.info(f"the lease of {self._storage} could not be freed and will run out: {failure}")

    def _beat(self) -> None:
        while not self._ended.wait(self._state.lease_seconds / _BEATS):
            try:
                self._renew()
            except ConflictError:
                return
            except (JobError, OSError) as error:  # the next beat may pass; until then the lease may run out
                if self._overdue:
                    return
                logger.info(f"the lease of {self._storage} could not be renewed: {error}")

    @property
    def _overdue(self) -> bool:
        return self._deadline is not None and self._clock.monotonic() >= self._deadline

    def _renew(self) -> None:
        with self._lock:
            if self._lost:
                raise ConflictError(self._lost)
            if self._overdue:
                raise JobError(f"run {self._state.run} lasts longer than reindex.max_hours allows; raise it")
            following = self._state.model_copy(update={"beat": self._state.beat + 1})
            try:
                _replace(self._storage, self._state, following)
            except ConflictError:
                found = _parse(self._storage.read_version(LEASE)[0])
                # A write whose answer was lost is tried again, and then refused for its own first attempt.
                if found != following:
                    now = f"; now it belongs to {found.holder}" if found and found.state == "held" else ""
                    self._lost = f"run {self._state.run} lost the lease of {self._storage}{now}; it publishes nothing"
                    raise ConflictError(self._lost) from None
            self._state = following


def acquire(
    storage: Storage,
    run: str,
    *,
    lease_seconds: float,
    wait_seconds: float = 0.0,
    max_seconds: float | None = None,
    known_fence: Callable[[], int] = lambda: 0,
    clock: Clock = time,
) -> Lease:
    """Takes the lease of a workspace; that of a dead holder is taken over.

    A holder is watched until it shows that it lives, which takes a quarter of its lease, or its lease has run out. One
    of this machine whose process has ended is dead at once.

    Args:
      storage: for the lease alone, which uses it in a thread of its own.
      run: id of the run that wants it.
      wait_seconds: how long a living holder is waited for.
      max_seconds: after which it is no longer renewed, so that a run that hangs is taken for dead.
      known_fence: the greatest fence that is known from elsewhere.
      clock: by which a holder is watched and `max_seconds` are counted.

    Raises:
      ConflictError: another run holds it, and lives.
    """
    give_up = clock.monotonic() + wait_seconds
    seen: bytes | None = None
    since = clock.monotonic()
    watching = False
    while True:
        data, version = storage.read_version(LEASE)
        found, now = _parse(data), clock.monotonic()
        if watching and data != seen and found and found.state == "held" and now >= give_up:
            raise ConflictError(
                f"{found.holder} re-indexes {storage}; wait for it to end, or let this one wait (--wait SECONDS)"
            )
        if data != seen:
            seen, since = data, now
        if data is not None and found is None:
            logger.info(f"{LEASE} in {storage} is damaged; it is written anew")
        held = found if found and found.state == "held" else None
        if held is None or held.died_here or now - since >= held.lease_seconds:
            if held:
                logger.info(f"{held.holder} is dead; its lease is taken over")
            counted = found.fence if found else 0
            fence = max(counted, known_fence()) + (1 if found or data is None else _UNWRITTEN)
            wanted = State(
                state="held",
                fence=fence,
                run=run,
                host=socket.gethostname(),
                pid=os.getpid(),
                machine=_machine(),
                process=_process(os.getpid()),
                since=journal.now(),
                lease_seconds=lease_seconds,
            )
            try:
                storage.replace(LEASE, _content(wanted), version)
            except ConflictError:
                if _parse(storage.read_version(LEASE)[0]) != wanted:
                    continue
            return Lease(storage, wanted, max_seconds, held.run if held else "", clock)
        if not watching:
            watching = True
            logger.info(f"{held.holder} holds the lease of {storage}; watching whether it lives")
        clock.sleep(min(_POLL_SECONDS, held.lease_seconds / _BEATS / 2))


def read(storage: Storage) -> State | None:
    """Returns who holds the lease, or held it last; None where nobody ever did, or its file is damaged."""
    return _parse(storage.read_version(LEASE)[0])


def _replace(storage: Storage, before: State, after: State) -> None:
    """Replaces one content by another.

    Raises:
      ConflictError: there is another one by now.
    """
    data, version = storage.read_version(LEASE)
    if _parse(data) != before:
        raise ConflictError(f"{LEASE} in {storage} was replaced by another run")
    storage.replace(LEASE, _content(after), version)


def _content(state: State) -> bytes:
    return state.model_dump_json(indent=1).encode()


def _parse(data: bytes | None) -> State | None:
    try:
        return State.model_validate_json(data) if data else None
    except ValidationError:
        return None


def _machine() -> str:
    """Names this machine, its boot and its process namespace; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process(pid: int) -> str:
    """Returns what tells a process from a later one with the same pid; empty where it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]  # starttime, in ticks since the boot
