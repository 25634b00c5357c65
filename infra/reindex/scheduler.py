"""`searchforge schedule`: re-indexes at the times of a cron expression until it is stopped.

Every run is a separate process, so that its memory is released and a crash in native code does not end the schedule. A
run that is due while another one is in progress is skipped; a run that was missed, for example because the machine was
suspended, is started late.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import Counter

from infra.reindex import cron, journal, lease, metrics, schedule_record
from infra.stages import require_publishable
from searchforge.config import Config
from searchforge.errors import SearchforgeError
from searchforge.storage.factory import open_storage

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

GRACE_SECONDS = 20.0
"""How long a run in progress has to stop when the schedule stops, before it is killed."""

_WAKEUP_SECONDS = 0.5
"""Interval at which due times are compared with the clock, which jumps when the machine was suspended."""


def schedule(
    config: Config,
    command: Sequence[str],
    *,
    trigger: BaseTrigger | None = None,
    grace_seconds: float = GRACE_SECONDS,
    stop: threading.Event | None = None,
) -> None:
    """Runs a command that re-indexes at the scheduled times until it is stopped.

    Args:
      trigger: APScheduler trigger to use instead of the configured expression.
      grace_seconds: How long a run in progress has to stop before it is killed.
      stop: Event that stops the schedule; by default SIGINT and SIGTERM stop it.

    Raises:
      UsageError: The expression or the time zone is invalid, the searcher that the configuration describes cannot be
        published, or the metrics port is in use.
      JobError: The journal cannot be read.
    """
    require_publishable(config)
    settings = config.schedule
    times = trigger or cron.CronTrigger(settings)
    registry = metrics.registry(config)
    counters = metrics.schedule_counters(registry)

    def next_due() -> datetime:
        now = _now()
        due = times.get_next_fire_time(now, now)
        assert due
        return due

    def skip(counter: Counter, reason: str) -> None:
        counter.inc()
        logger.info(f"skipping a scheduled run: {reason}; the next one is at {_format_time(next_due())}")

    def skip_overlap(holder: str) -> None:
        skip(counters.overlaps, f"{holder} is in progress")

    child = _ChildProcess(command, config.workspace, counters.failures, skip_overlap)
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # relevant events are logged here
    scheduler = BackgroundScheduler(timezone=timezone.utc)
    scheduler.add_listener(
        lambda _: skip(counters.overlaps, "the previous one is in progress"), EVENT_JOB_MAX_INSTANCES
    )
    scheduler.add_listener(
        lambda _: skip(counters.misfires, f"it is more than {settings.misfire_seconds} s late"), EVENT_JOB_MISSED
    )
    due = _missed(config) or next_due()
    scheduler.add_job(
        child.run,
        times,
        next_run_time=due,
        misfire_grace_time=settings.misfire_seconds,
        coalesce=True,
        max_instances=1,
    )
    stop_event = contextlib.nullcontext(stop) if stop else _stop_on_signals()
    record = schedule_record.kept(open_storage(config.workspace), settings)
    with metrics.serve(registry, settings.metrics_port), record, stop_event as stop:
        logger.info(f"re-indexing {config.workspace} at {settings.cron} ({settings.timezone}); press Ctrl-C to stop")
        if due < _now():
            logger.info(f"the run of {_format_time(due)} was missed and starts now")
        else:
            logger.info(f"the first run starts at {_format_time(due)}")
        scheduler.start()
        while not stop.is_set():
            time.sleep(_WAKEUP_SECONDS)
            scheduler.wakeup()
        child.stop(grace_seconds)
        scheduler.shutdown()
        logger.info("the schedule has stopped")


class _ChildProcess:
    """Runs the command that re-indexes, one process at a time."""

    def __init__(
        self, command: Sequence[str], workspace: str, failures: Counter, skip_overlap: Callable[[str], None]
    ) -> None:
        self._command, self._workspace = command, workspace
        self._failures, self._skip_overlap = failures, skip_overlap
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> None:
        """Runs the command and waits for it to exit."""
        with self._lock:
            if self._stopped:
                return
            try:
                self._process = subprocess.Popen(self._command, start_new_session=True)
            except OSError as error:
                self._failures.inc()
                logger.info(f"the scheduled run cannot be started: {error.strerror}")
                return
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # descendants that outlived a crash
            os.killpg(self._process.pid, signal.SIGKILL)
        if not code or self._stopped:
            return
        if code == 1 and (holder := self._other_holder()):
            self._skip_overlap(holder)
        else:
            self._failures.inc()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            logger.info(f"the scheduled run {how}; see `searchforge status`")

    def _other_holder(self) -> str:
        """Returns the run that holds the workspace's lease now that the command has ended; empty if there is none."""
        try:
            held = lease.read(open_storage(self._workspace))
        except (SearchforgeError, OSError):
            return ""
        return held.holder if held and held.state == "held" and not held.holder_is_dead else ""

    def stop(self, grace_seconds: float) -> None:
        """Terminates a process in progress, kills it after the grace period, and prevents further ones."""
        with self._lock:
            self._stopped = True
        if self._process and self._process.poll() is None:
            logger.info(f"stopping the run in progress; it is killed after {grace_seconds:.0f} s")
            self._process.terminate()
            try:
                self._process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()


def _missed(config: Config) -> datetime | None:
    """Returns the last due time if it is recent enough to catch up on and no run started since; otherwise None."""
    due = cron.last_due(config.schedule, _now())
    last = next(journal.runs(open_storage(config.workspace)), None)
    return due if due and last and datetime.fromisoformat(last.started) < due else None


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGINT and SIGTERM set; restores their handlers afterwards."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _format_time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M %Z}"
