"""A lease on the workspace, which prevents concurrent runs and survives the death of its holder.

    reindex/LEASE.json

The holder renews the lease by incrementing a counter. A waiting process watches the counter with its own monotonic
clock and takes the lease over once the counter has not changed for `lease_seconds`; clocks of different machines are
never compared. Every acquisition gets a greater fencing token than all earlier ones, and release channels refuse
publishers with a smaller token than the one they have stored, so a holder that was only suspended does no harm.
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

_RENEWALS = 4
"""Number of renewals per `lease_seconds`."""

_POLL_SECONDS = 1.0

_FENCE_MARGIN = 1000
"""Increment of the fencing token when LEASE.json is damaged: an upper bound on acquisitions recorded nowhere else."""


class LeaseState(BaseModel):
    """Content of LEASE.json.

    Attributes:
      fence: Fencing token of the latest acquisition.
      run, host, pid: Run id, host name and process id of the holder.
      machine: Machine, boot and process namespace of the holder; tells whether its process is visible from here.
      process: Start time of the holder's process; distinguishes it from a later process with the same pid.
      since: UTC time of the acquisition, ISO 8601; shown, but not relied on.
      beat: Renewal counter.
      renewed: UTC time of the latest renewal, ISO 8601; shown, but not relied on.
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
    renewed: str = ""
    lease_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def holder(self) -> str:
        """Human-readable description of the holder."""
        return f"run {self.run} (process {self.pid} on {self.host}, since {self.since})"

    @property
    def holder_is_dead(self) -> bool:
        """Whether the holder's process ran on this machine and has ended; False if that cannot be determined."""
        return bool(self.machine) and self.machine == machine() and process_start(self.pid) != self.process


class Lease:
    """A held lease, renewed by a background thread; a context manager that releases it.

    Attributes:
      fence: Fencing token, greater than that of every earlier holder.
      taken_over: Id of the dead run that held it before; empty if the lease was free.
      last_renewal: UTC time at which the dead run last renewed it, ISO 8601; empty if the lease was free.
    """

    def __init__(
        self, storage: Storage, state: LeaseState, max_seconds: float | None, dead: LeaseState | None, clock: Clock
    ) -> None:
        self.fence = state.fence
        self.taken_over, self.last_renewal = (dead.run, dead.renewed) if dead else ("", "")
        self._storage, self._state, self._clock = storage, state, clock
        self._deadline = clock.monotonic() + max_seconds if max_seconds else None
        self._lost_error = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Renews the lease, which verifies that it is still held.

        Raises:
          ConflictError: Another run took the lease over.
          JobError: The run exceeded its maximum duration, or the storage is unavailable.
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
            if self._lost_error:
                return
            try:
                _replace(self._storage, self._state, LeaseState(state="free", fence=self.fence))
            except (ConflictError, JobError, OSError) as failure:
                logger.info(f"the lease of {self._storage} could not be released and will expire: {failure}")

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._state.lease_seconds / _RENEWALS):
            try:
                self._renew()
            except ConflictError:
                return
            except (JobError, OSError) as error:  # a later renewal may succeed before the lease expires
                if self._overdue:
                    return
                logger.info(f"the lease of {self._storage} could not be renewed: {error}")

    @property
    def _overdue(self) -> bool:
        return self._deadline is not None and self._clock.monotonic() >= self._deadline

    def _renew(self) -> None:
        with self._lock:
            if self._lost_error:
                raise ConflictError(self._lost_error)
            if self._overdue:
                raise JobError(f"run {self._state.run} exceeded reindex.max_hours; raise it if that much is needed")
            following = self._state.model_copy(update={"beat": self._state.beat + 1, "renewed": journal.now()})
            try:
                _replace(self._storage, self._state, following)
            except ConflictError:
                found = _parse(self._storage.read_version(LEASE)[0])
                # A retried write conflicts with its own first attempt if only the response was lost.
                if found != following:
                    holder = f"; it is now held by {found.holder}" if found and found.state == "held" else ""
                    self._lost_error = (
                        f"run {self._state.run} lost the lease of {self._storage}{holder}; it publishes nothing"
                    )
                    raise ConflictError(self._lost_error) from None
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
    """Acquires the lease of a workspace, taking it over from a dead holder.

    A holder is observed until it renews the lease, which takes a quarter of `lease_seconds`, or the lease expires. A
    holder whose process ran on this machine and has ended is replaced immediately.

    Args:
      storage: Storage for the lease only; a background thread uses it.
      run: Id of the run that acquires the lease.
      wait_seconds: How long to wait for a live holder.
      max_seconds: Duration after which the lease is no longer renewed, so that a hanging run loses it.
      known_fence: Returns the greatest fencing token recorded elsewhere.
      clock: Clock that times the observation and `max_seconds`.

    Raises:
      ConflictError: Another live run holds the lease.
    """
    deadline = clock.monotonic() + wait_seconds
    last_data: bytes | None = None
    unchanged_since = clock.monotonic()
    watching = False
    while True:
        data, version = storage.read_version(LEASE)
        found, now = _parse(data), clock.monotonic()
        if watching and data != last_data and found and found.state == "held" and now >= deadline:
            raise ConflictError(f"{found.holder} is re-indexing {storage}; wait for it to end, or pass --wait SECONDS")
        if data != last_data:
            last_data, unchanged_since = data, now
        if data is not None and found is None:
            logger.info(f"{LEASE} in {storage} is damaged and will be replaced")
        held = found if found and found.state == "held" else None
        if held is None or held.holder_is_dead or now - unchanged_since >= held.lease_seconds:
            if held:
                logger.info(f"{held.holder} is dead; taking over its lease")
            last_fence = found.fence if found else 0
            fence = max(last_fence, known_fence()) + (1 if found or data is None else _FENCE_MARGIN)
            acquired = LeaseState(
                state="held",
                fence=fence,
                run=run,
                host=socket.gethostname(),
                pid=os.getpid(),
                machine=machine(),
                process=process_start(os.getpid()),
                since=journal.now(),
                lease_seconds=lease_seconds,
            )
            try:
                storage.replace(LEASE, _serialize(acquired), version)
            except ConflictError:
                if _parse(storage.read_version(LEASE)[0]) != acquired:
                    continue
            return Lease(storage, acquired, max_seconds, held, clock)
        if not watching:
            watching = True
            logger.info(f"{held.holder} holds the lease of {storage}; waiting to see whether it is alive")
        clock.sleep(min(_POLL_SECONDS, held.lease_seconds / _RENEWALS / 2))


def read(storage: Storage) -> LeaseState | None:
    """Returns the state of the lease, or None if its file is missing or damaged."""
    return _parse(storage.read_version(LEASE)[0])


def _replace(storage: Storage, before: LeaseState, after: LeaseState) -> None:
    """Replaces LEASE.json, provided that its content is `before`.

    Raises:
      ConflictError: It has other content.
    """
    data, version = storage.read_version(LEASE)
    if _parse(data) != before:
        raise ConflictError(f"{LEASE} in {storage} was replaced by another run")
    storage.replace(LEASE, _serialize(after), version)


def _serialize(state: LeaseState) -> bytes:
    return state.model_dump_json(indent=1).encode()


def _parse(data: bytes | None) -> LeaseState | None:
    try:
        return LeaseState.model_validate_json(data) if data else None
    except ValidationError:
        return None


def machine() -> str:
    """Returns the identity of this machine, its boot and its process namespace; empty if that is not possible."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Returns a process's start time, which distinguishes it from a later one with the same pid; empty if it ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]  # starttime, in ticks since the boot
