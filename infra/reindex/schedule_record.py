"""The running schedule of a workspace, as `status` shows it.

    reindex/SCHEDULE.json

`searchforge schedule` writes the record when it starts, renews it while it runs, and deletes it when it is stopped. Of
several schedules of a workspace, the one that wrote last is shown.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timezone

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.reindex import lease
from searchforge.config import ScheduleConfig
from searchforge.errors import SearchforgeError
from searchforge.storage.base import Storage

RECORD = "reindex/SCHEDULE.json"

RENEWAL_SECONDS = 60.0

_EXPIRY_SECONDS = 5 * RENEWAL_SECONDS
"""Age at which a record is that of a schedule that was killed, on a machine that this one cannot ask."""


class ScheduleRecord(BaseModel):
    """Content of SCHEDULE.json.

    Attributes:
      settings: When the schedule runs.
      host, pid, machine, process: Its process; see `lease.LeaseState`.
      renewed: UTC time of the latest renewal, ISO 8601.
    """

    model_config = ConfigDict(frozen=True)

    settings: ScheduleConfig
    host: str
    pid: int
    machine: str
    process: str
    renewed: datetime

    def is_running(self, now: datetime) -> bool:
        """Returns whether the schedule's process has not ended, as far as that can be known."""
        if self.machine and self.machine == lease.machine():
            return lease.process_start(self.pid) == self.process
        return (now - self.renewed).total_seconds() < _EXPIRY_SECONDS


def read(storage: Storage) -> ScheduleRecord | None:
    """Returns the record of the latest schedule, or None if there is none."""
    try:
        return ScheduleRecord.model_validate_json(storage.read(RECORD))
    except (FileNotFoundError, ValidationError):
        return None


@contextlib.contextmanager
def kept(storage: Storage, settings: ScheduleConfig) -> Iterator[None]:
    """Keeps the record of this process's schedule while the context is open, as far as the storage can be written."""
    stop = threading.Event()

    def write() -> None:
        record = ScheduleRecord(
            settings=settings,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=lease.machine(),
            process=lease.process_start(os.getpid()),
            renewed=datetime.now(timezone.utc),
        )
        with contextlib.suppress(SearchforgeError, OSError):
            storage.write(RECORD, record.model_dump_json().encode())

    def renew() -> None:
        while not stop.wait(RENEWAL_SECONDS):
            write()

    write()
    thread = threading.Thread(target=renew, name="schedule record", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(RENEWAL_SECONDS)
        with contextlib.suppress(SearchforgeError, OSError):
            storage.delete(RECORD)
