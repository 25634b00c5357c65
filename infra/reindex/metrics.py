"""Metrics of re-indexing in Prometheus' text format, for a server to scrape and for node_exporter's textfile collector.

They are read from the journal, the lease and the releases when they are asked for, so that any machine that reads the
workspace can tell them.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.reindex import journal, status
from infra.reindex.journal import Run
from infra.reindex.status import Status
from searchforge.clock import Clock
from searchforge.config import Config
from searchforge.errors import SearchforgeError, UsageError
from searchforge.storage.base import Storage

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"

RUNS = 50
"""Latest entries of the journal that count."""

CACHE_SECONDS = 5.0
"""For which one reading answers every scrape."""


def registry(config: Config, clock: Clock = time) -> CollectorRegistry:
    """Returns a registry of its own with the metrics of a workspace.

    Args:
      clock: tells when a reading is older than CACHE_SECONDS.
    """
    found = CollectorRegistry()
    found.register(_StatusCollector(config, clock))
    return found


class ScheduleCounters(NamedTuple):
    """What only the process of a schedule knows."""

    overlaps: Counter
    misfires: Counter
    failures: Counter


def schedule_counters(registry: CollectorRegistry) -> ScheduleCounters:
    """Adds the counters of a schedule to a registry."""

    def counter(name: str, meaning: str) -> Counter:
        return Counter(f"searchforge_schedule_{name}", meaning, registry=registry)

    return ScheduleCounters(
        overlaps=counter("overlaps", "Scheduled times that were left out because the run before still lasted."),
        misfires=counter("misfires", "Scheduled times that passed too long ago to be made up for."),
        failures=counter("failures", "Scheduled runs whose process did not end with exit code 0."),
    )


def text(config: Config) -> str:
    """Returns the metrics of now."""
    return exposition(registry(config))


def exposition(registry: CollectorRegistry) -> str:
    """Returns what a registry's metrics are, as text."""
    return generate_latest(registry).decode()


@contextlib.contextmanager
def served(registry: CollectorRegistry, port: int | None) -> Iterator[None]:
    """Serves metrics on 127.0.0.1; `port` 0: a free one, None: not at all.

    Raises:
      UsageError: the port is in use.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
        raise UsageError(f"port {port} {reason}; choose another schedule.metrics_port") from None
    logger.info(f"metrics: http://{HOST}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _StatusCollector(Collector):
    """Reads the status of a workspace when it is scraped, and tells where that fails."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._lock = threading.Lock()
        self._ended: dict[str, Run] = {}
        self._families: list[Metric] = []
        self._read_at = float("-inf")

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if self._clock.monotonic() - self._read_at >= CACHE_SECONDS:
                try:
                    found = status.examine(self._config, RUNS, self._read)
                    self._ended = {run.run: run for run in found.runs if run.run in self._ended}
                    self._families = [
                        _gauge("status_read", "Whether the workspace could be read.", 1),
                        *_families(found),
                    ]
                except (SearchforgeError, OSError) as error:
                    logger.info(f"metrics cannot be read: {error}")
                    self._families = [_gauge("status_read", "Whether the workspace could be read.", 0)]
                self._read_at = self._clock.monotonic()
            return self._families

    def describe(self) -> Iterable[Metric]:
        return ()  # else registering would read the workspace

    def _read(self, storage: Storage, id: str) -> Run | None:
        """Reads an entry of the journal; one of a run that has ended only once."""
        run = self._ended.get(id) or journal.read(storage, id)
        if run and run.state != "running":
            self._ended[id] = run
        return run


def _families(found: Status) -> Iterator[Metric]:
    """All metrics of a status."""
    yield _gauge("reindex_running", "Whether a run holds the lease.", bool(found.running and not found.running.died))
    yield _gauge("reindex_stopped", "Whether runs are refused until one is told to resume.", found.stopped)
    yield _gauge("reindex_consecutive_failures", "Runs that failed in a row.", found.failures)
    states = collections.Counter(found.state(run) for run in found.runs)
    yield _labelled(
        "reindex_recent_runs",
        f"Runs by state, of the latest {RUNS} in the journal.",
        "state",
        {state: states[state] for state in (*get_args(journal.State), "died")},
    )
    if found.runs:
        last = found.runs[0]
        yield _time("reindex_last_run_start", "Start of the latest run.", last.started)
        if last.ended:
            yield _time("reindex_last_run_end", "End of the latest run.", last.ended)
        yield _labelled("reindex_last_run_state", "State of the latest run.", "state", {found.state(last): 1})
    if found.fresh:
        yield _time("reindex_last_success", "Start of the latest run whose corpus is live.", found.fresh)
    seconds: dict[str, float] = {}
    for run in found.runs:
        for entry in reversed(run.stages):
            if not entry.error:
                seconds.setdefault(entry.stage, entry.seconds)
    yield _labelled("reindex_stage_duration_seconds", "Of each stage, when it last succeeded.", "stage", seconds)
    if found.lag:
        yield _time("corpus_listed", "When the corpus was last listed.", found.lag.listed)
        yield _gauge("corpus_items", "Of the corpus when it was last listed.", found.lag.items)
        pending = {change: getattr(found.lag, change) for change in ("added", "changed", "removed")}
        yield _labelled("corpus_pending_items", "Changes of the corpus that are not released.", "change", pending)
        withheld = "Whether a release that holds the corpus is not live, since somebody chose another one."
        yield _gauge("corpus_release_withheld", withheld, bool(found.lag.withheld))
    if found.next_run:
        yield _time("schedule_next_run", "Next time of the schedule.", found.next_run)
    yield from _releases(found)


def _releases(found: Status) -> Iterator[Metric]:
    """Metrics of what is live; a figure that a release has not is left out."""
    names = InfoMetricFamily("searchforge_release", "Live release of a channel.", labels=["channel"])
    whole = {channel: release for channel, release in found.live.items() if not release.damaged}
    for channel, release in whole.items():
        names.add_metric([channel], {"release": release.id, "encoder": release.provenance.get("encoder", "")})
    yield names
    live = found.live.items()
    yield _labelled("release_damaged", "Whether it is.", "channel", {name: bool(each.damaged) for name, each in live})
    created = {channel: _seconds(release.created) for channel, release in whole.items()}
    yield _labelled("release_created_timestamp_seconds", "When it was published.", "channel", created)
    size = {channel: release.bytes for channel, release in whole.items()}
    yield _labelled("release_size_bytes", "Of its files.", "channel", size)
    for name, meaning, figure, unit in (
        ("images", "That it finds.", "images", 1.0),
        ("recall_at_10", "Of its index, against exact search.", "recall_at_10", 1.0),
        ("latency_seconds", "Of a text query on one thread, the median.", "latency_p50_ms", 1e-3),
    ):
        values = {
            channel: release.figures[figure] * unit for channel, release in whole.items() if figure in release.figures
        }
        yield _labelled(f"release_{name}", meaning, "channel", values)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"searchforge_{name}", meaning, value=float(value))


def _time(name: str, meaning: str, moment: str) -> Metric:
    return _gauge(f"{name}_timestamp_seconds", meaning, _seconds(moment))


def _labelled(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"searchforge_{name}", meaning, labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
