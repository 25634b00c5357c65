"""Status of re-indexing: recent runs, the run in progress, the next run, live releases, and unreleased changes.

It is read from the journal, the lease and the releases; nothing is changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from infra.reindex import cron, journal, lease, schedule_record
from infra.reindex.journal import ItemsEntry, PlanEntry, Run
from infra.reindex.plan import ReindexPlan
from infra.reindex.schedule_record import ScheduleRecord
from infra.releases.releases import Release, list_releases, open_target
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.errors import UsageError
from searchforge.storage.base import Storage

_SUCCESS = ("published", "unchanged")
"""States of a run whose release matches the corpus as the run listed it."""

Reader = Callable[[Storage, str], "Run | None"]


@dataclass(frozen=True)
class Running:
    """The run that holds the lease.

    Attributes:
      run: Id of the run.
      host: Name of its machine.
      since: UTC time at which it acquired the lease, ISO 8601.
      stage: Current stage.
      renewed: UTC time at which it last renewed its lease, ISO 8601.
      died: Whether its process is known to have ended; the next run then takes its lease over.
    """

    run: str
    host: str
    since: str
    stage: str
    renewed: str
    died: bool


@dataclass(frozen=True)
class Lag:
    """Changes of the corpus that are not live yet.

    Attributes:
      listed: UTC time at which the corpus was listed, ISO 8601.
      items: Number of items in the corpus at that time.
      added, changed, removed: Numbers of items, compared with the releases.
      withheld: Id of a release that matches the corpus but is not live, because another one was made live; empty if
        there is none.
    """

    listed: str
    items: int
    added: int
    changed: int
    removed: int
    withheld: str = ""


@dataclass(frozen=True)
class Status:
    """Status of re-indexing in a workspace.

    Attributes:
      time: UTC time of this status, ISO 8601.
      running: Run that holds the lease, None if it is free.
      runs: Most recent runs, most recent first.
      fresh: Start time of the most recent run whose release is live; None if the journal has no such run.
      failures: Number of consecutive failed runs, including those that died.
      stopped: Whether `reindex` refuses to start without `--resume`.
      lag: Unreleased changes according to the latest plan, or to a current listing; None if there was no plan yet.
      items: Outcome of every item of the corpus in the latest run that embedded it; None if there was none yet.
      schedule: The schedule that runs for this workspace; None if none runs.
      next_run: Next time of that schedule, ISO 8601; None if none runs.
      configured: Expression of the configured schedule, if any.
      live: Live release of each channel.
    """

    workspace: str
    time: str
    running: Running | None
    runs: tuple[Run, ...]
    fresh: str | None
    failures: int
    stopped: bool
    lag: Lag | None
    items: ItemsEntry | None
    schedule: ScheduleRecord | None
    next_run: str | None
    configured: str | None
    live: dict[str, Release]

    def state(self, run: Run) -> str:
        """Returns a run's state; `died` if it is recorded as running but does not hold the lease."""
        return "died" if _is_dead(run, self.running) else run.state

    def faults(self, max_age: float | None) -> list[str]:
        """Returns descriptions of conditions that need attention.

        They are stopped runs and, with `max_age` in seconds, a live index that no run has confirmed for that long.
        """
        found = []
        if self.stopped:
            found.append(f"{self.failures} consecutive runs failed; `searchforge reindex --resume` starts again")
        if max_age is not None and (self.fresh is None or seconds_between(self.fresh, self.time) > max_age):
            last = f"last matched the corpus at {self.fresh}" if self.fresh else "has no matching run in the journal"
            found.append(f"the live index {last}; the maximum age is {max_age:g} s")
        return found


def read_status(config: Config, count: int = 10, read: Reader = journal.read) -> Status:
    """Reads the status of re-indexing.

    Args:
      count: Maximum number of runs to include.
      read: Function that reads a run from the journal.

    Raises:
      UsageError: The configured schedule is invalid.
      JobError: The workspace or the releases cannot be read.
    """
    storage = Workspace(config.workspace).storage
    entries = (run for id in journal.ids(storage) if (run := read(storage, id)))
    runs, planned, embedded, successful = itertools.tee(entries, 4)
    recent = list(itertools.islice(runs, count))
    live = _live_releases(open_target(config))
    fresh = next((run.started for run in successful if _is_live(run, live)), None)
    running = _running(storage, recent)
    failures = _consecutive_failures(recent, running)
    now = datetime.now(timezone.utc)
    schedule = schedule_record.read(storage)
    if schedule and not schedule.is_running(now):
        schedule = None
    if config.schedule.cron:
        cron.CronTrigger(config.schedule)  # refuses an invalid expression
    return Status(
        workspace=storage.root,
        time=now.isoformat(timespec="seconds"),
        running=running,
        runs=tuple(recent),
        fresh=fresh,
        failures=failures,
        stopped=failures >= config.reindex.max_failures,
        lag=next((_lag(run, run.plan, live) for run in planned if run.plan), None),
        items=next((run.items for run in embedded if run.items), None),
        schedule=schedule,
        next_run=cron.next_due(schedule.settings, now).isoformat() if schedule else None,
        configured=config.schedule.cron,
        live=live,
    )


def with_plan(status: Status, plan: ReindexPlan) -> Status:
    """Returns the status with the unreleased changes that a plan found."""
    entry, match = plan.entry, plan.matching_release or ""
    withheld = "" if any(release.id == match for release in status.live.values()) else match
    lag = Lag(status.time, entry.items, entry.added, entry.changed, entry.removed, withheld)
    return dataclasses.replace(status, lag=lag)


def seconds_between(start: str, end: str) -> float:
    """Returns the seconds between two ISO 8601 times."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def parse_age(text: str) -> float:
    """Parses an age such as `26h`, `90m` or `2d`; returns seconds.

    Raises:
      UsageError: The text is not an age.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match:
        raise UsageError(f"{text!r} is not a valid age; expected a number followed by s, m, h or d, such as 26h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _running(storage: Storage, runs: list[Run]) -> Running | None:
    held = lease.read(storage)
    if held is None or held.state != "held":
        return None
    run = next((run for run in runs if run.run == held.run), None)
    stage = run.stage_in_progress if run else "plan"
    return Running(held.run, held.host, held.since, stage, held.renewed or held.since, held.holder_is_dead)


def _is_dead(run: Run, running: Running | None) -> bool:
    """Returns whether a run is recorded as running although it no longer holds the lease, or its process ended."""
    return run.state == "running" and not (running and running.run == run.run and not running.died)


def _consecutive_failures(recent: Sequence[Run], running: Running | None) -> int:
    """Returns the count of the latest run, and one more for each dead run that no later run has recorded."""
    dead = list(itertools.takewhile(lambda run: _is_dead(run, running), recent))
    return len(dead) + (dead[-1].failures if dead else recent[0].failures if recent else 0)


def _is_live(run: Run, live: Mapping[str, Release]) -> bool:
    """Returns whether the release that matches the corpus as the run listed it is live now."""
    return run.state in _SUCCESS and run.channel in live and live[run.channel].id == run.release


def _lag(run: Run, plan: PlanEntry, live: Mapping[str, Release]) -> Lag:
    """Returns the changes that the run found and did not release."""
    if run.state not in _SUCCESS:
        return Lag(run.started, plan.items, plan.added, plan.changed, plan.removed)
    return Lag(run.started, plan.items, 0, 0, 0, "" if _is_live(run, live) else run.release or "")


def _live_releases(target: Workspace) -> dict[str, Release]:
    return {channel: release for release in list_releases(target) for channel in release.channels}
