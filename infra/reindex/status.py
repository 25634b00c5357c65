"""How re-indexing stands: runs, the one in progress, the next one, what is live, and how far it is behind the corpus.

All is read from the workspace's journal and lease and from the releases; nothing is changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from infra.reindex import cron, journal, lease
from infra.reindex.journal import PlanEntry, Run
from infra.reindex.plan import Plan
from infra.releases.releases import Release, list_releases, open_target
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.errors import UsageError
from searchforge.storage.base import Storage

_SUCCESS = ("published", "unchanged")
"""States of a run that knows a release which holds the corpus as the run listed it."""

Reader = Callable[[Storage, str], "Run | None"]


@dataclass(frozen=True)
class Running:
    """Who holds the lease.

    Attributes:
      since: UTC time, ISO 8601.
      stage: that it is at.
      died: whether it is known to have ended; the next run takes its lease over.
    """

    run: str
    host: str
    since: str
    stage: str
    died: bool


@dataclass(frozen=True)
class Lag:
    """What the corpus has and the releases have not.

    Attributes:
      listed: UTC time at which the corpus was listed, ISO 8601.
      items: of the corpus then.
      added, changed, removed: of them, since what is released.
      withheld: release that holds the corpus and is not live, since somebody chose another one; empty: none.
    """

    listed: str
    items: int
    added: int
    changed: int
    removed: int
    withheld: str = ""


@dataclass(frozen=True)
class Status:
    """How re-indexing stands.

    Attributes:
      time: of this status, UTC, ISO 8601.
      runs: the latest ones, latest first.
      fresh: start of the latest run whose corpus is the live release's; None where the journal knows of none.
      failures: runs that failed in a row; one that was killed is none.
      stopped: whether `reindex` refuses to start until it is told to `--resume`.
      lag: by the latest plan, or by a listing of now; None where nothing was planned yet.
      next_run: of the schedule in the configuration; None where there is none.
      live: release by channel.
    """

    workspace: str
    time: str
    running: Running | None
    runs: tuple[Run, ...]
    fresh: str | None
    failures: int
    stopped: bool
    lag: Lag | None
    next_run: str | None
    live: dict[str, Release]

    def state(self, run: Run) -> str:
        """Returns a run's state, `died` for one that says it is running but holds no lease."""
        if run.state != "running":
            return run.state
        alive = self.running and self.running.run == run.run and not self.running.died
        return "running" if alive else "died"

    def faults(self, max_age: float | None) -> list[str]:
        """Returns what an operator must look at: a stop, or an index that is older than `max_age` seconds."""
        found = []
        if self.stopped:
            found.append(f"{self.failures} runs failed in a row; `searchforge reindex --resume` starts again")
        if max_age is not None and (self.fresh is None or seconds_between(self.fresh, self.time) > max_age):
            found.append(f"the index is of {self.fresh or 'no time that the journal knows'}, older than {max_age:g} s")
        return found


def examine(config: Config, count: int = 10, read: Reader = journal.read) -> Status:
    """Reads how re-indexing stands.

    Args:
      count: of runs to show.
      read: reads a run of the journal.

    Raises:
      UsageError: the schedule in the configuration is not valid.
      JobError: the workspace or the releases cannot be read.
    """
    storage = Workspace(config.workspace).storage
    runs = (run for id in journal.ids(storage) if (run := read(storage, id)))
    shown = list(itertools.islice(runs, count))
    live = _live(open_target(config))
    fresh = next((run.started for run in itertools.chain(shown, runs) if _holds(run, live)), None)
    failures = shown[0].failures if shown else 0
    now = datetime.now(timezone.utc)
    return Status(
        workspace=storage.root,
        time=now.isoformat(timespec="seconds"),
        running=_running(storage, shown),
        runs=tuple(shown),
        fresh=fresh,
        failures=failures,
        stopped=failures >= config.reindex.max_failures,
        lag=next((_lag(run, run.plan, live) for run in shown if run.plan), None),
        next_run=cron.next_due(config.schedule, now).isoformat() if config.schedule.cron else None,
        live=live,
    )


def with_plan(status: Status, plan: Plan) -> Status:
    """Returns the status with the lag that a plan of now found."""
    entry = plan.entry
    live = plan.holds is None or any(release.id == plan.holds for release in status.live.values())
    lag = Lag(status.time, entry.items, entry.added, entry.changed, entry.removed, "" if live else plan.holds or "")
    return dataclasses.replace(status, lag=lag)


def seconds_between(start: str, end: str) -> float:
    """Seconds from one ISO 8601 time to another."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def parse_age(text: str) -> float:
    """Returns the seconds of an age such as `26h`, `90m` or `2d`.

    Raises:
      UsageError: it is not one.
    """
    written = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not written:
        raise UsageError(f"{text!r} is no age; expected a number and s, m, h or d, such as 26h")
    return float(written[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[written[2]]


def _running(storage: Storage, runs: list[Run]) -> Running | None:
    held = lease.read(storage)
    if held is None or held.state != "held":
        return None
    run = next((run for run in runs if run.run == held.run), None)
    return Running(held.run, held.host, held.since, _stage(run), held.died_here)


def _stage(run: Run | None) -> str:
    """The first stage that is planned and not done."""
    if run is None or run.plan is None:
        return "plan"
    done = {entry.stage for entry in run.stages if not entry.error}
    return next((stage for stage in run.plan.work if stage not in done), "prune")


def _holds(run: Run, live: Mapping[str, Release]) -> bool:
    """Whether what is live now is the release that held the corpus as the run listed it."""
    return run.state in _SUCCESS and run.channel in live and live[run.channel].id == run.release


def _lag(run: Run, plan: PlanEntry, live: Mapping[str, Release]) -> Lag:
    """What the run found to do, less what it did."""
    if run.state not in _SUCCESS:
        return Lag(run.started, plan.items, plan.added, plan.changed, plan.removed)
    return Lag(run.started, plan.items, 0, 0, 0, "" if _holds(run, live) else run.release or "")


def _live(target: Workspace) -> dict[str, Release]:
    return {channel: release for release in list_releases(target) for channel in release.channels}
