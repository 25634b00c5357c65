"""`searchforge schedule`: re-indexes at the times of a cron expression, until it is told to end.

Every run is a process of its own: its memory is given back, and a crash of native code ends no schedule. One that is
due while another one runs is left out; one that was missed, because the machine slept, is made up for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import Counter

from infra.reindex import cron, journal, metrics
from searchforge.config import Config
from searchforge.storage.factory import open_storage

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

END_SECONDS = 20.0
"""In which a re-indexing may end by itself when the schedule ends; then it is killed."""

_LOOK_SECONDS = 0.5
"""Between two looks at the clock, which jumps when the machine slept."""


def schedule(
    config: Config,
    command: Sequence[str],
    *,
    trigger: BaseTrigger | None = None,
    end_seconds: float = END_SECONDS,
    ended: threading.Event | None = None,
) -> None:
    """Runs `command`, which re-indexes, at the scheduled times, until it is told to end.

    Args:
      trigger: decides when runs start, instead of the configured expression.
      end_seconds: in which a run in progress may end by itself before it is killed.
      ended: is set to end the schedule; by default SIGINT and SIGTERM do.

    Raises:
      UsageError: the expression or the time zone is not valid, or the port of the metrics is in use.
      JobError: the journal cannot be read.
    """
    settings = config.schedule
    times = trigger or cron.trigger(settings)
    registry = metrics.registry(config)
    counters = metrics.schedule_counters(registry)

    def next_due() -> datetime:
        now = _now()
        due: datetime = times.get_next_fire_time(now, now)
        return due

    def left_out(counter: Counter, why: str) -> None:
        counter.inc()
        logger.info(f"a scheduled run is left out: {why}; the next one is at {_shown(next_due())}")

    child = _Child(command, counters.failures)
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # what concerns the user is said here
    scheduler = BackgroundScheduler(timezone=timezone.utc)
    scheduler.add_listener(lambda _: left_out(counters.overlaps, "the one before still runs"), EVENT_JOB_MAX_INSTANCES)
    scheduler.add_listener(
        lambda _: left_out(counters.misfires, f"it is over {settings.misfire_seconds} s late"), EVENT_JOB_MISSED
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
    told_to_end = contextlib.nullcontext(ended) if ended else _told_to_end()
    with metrics.served(registry, settings.metrics_port), told_to_end as ended:
        late = ", which was missed: it starts now" if due < _now() else ""
        logger.info(f"re-indexing {config.workspace} at {settings.cron} ({settings.timezone}); Ctrl-C ends it")
        logger.info(f"the first run is that of {_shown(due)}{late}")
        scheduler.start()
        while not ended.is_set():
            time.sleep(_LOOK_SECONDS)
            scheduler.wakeup()
        child.end(end_seconds)
        scheduler.shutdown()
        logger.info("the schedule has ended")


class _Child:
    """The process that re-indexes, one at a time."""

    def __init__(self, command: Sequence[str], failed: Counter) -> None:
        self._command, self._failed = command, failed
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self) -> None:
        """Runs the command to its end."""
        with self._lock:
            if self._ended:
                return
            try:
                self._process = subprocess.Popen(self._command, start_new_session=True)
            except OSError as error:
                self._failed.inc()
                logger.info(f"the scheduled run cannot be started: {error.strerror}")
                return
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # what a crash left behind
            os.killpg(self._process.pid, signal.SIGKILL)
        if code and not self._ended:
            self._failed.inc()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            logger.info(f"the scheduled run {how}; `searchforge status` says how things stand")

    def end(self, seconds: float) -> None:
        """Ends the command if it runs, and starts no other; after so many seconds it is killed."""
        with self._lock:
            self._ended = True
        if self._process and self._process.poll() is None:
            logger.info(f"ending the run in progress; it has {seconds:.0f} s")
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()


def _missed(config: Config) -> datetime | None:
    """Returns the last scheduled time, if it can be made up for and the journal's latest run started before it."""
    due = cron.last_due(config.schedule, _now())
    last = next(journal.runs(open_storage(config.workspace)), None)
    return due if due and last and datetime.fromisoformat(last.started) < due else None


@contextlib.contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Yields what is set by SIGINT and SIGTERM."""
    ended = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: ended.set()) for number in signals]
    try:
        yield ended
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M %Z}"
