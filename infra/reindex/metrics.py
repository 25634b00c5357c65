"""Prometheus metrics of re-indexing, for scraping and for node_exporter's textfile collector.

They are computed from the journal, the lease and the releases on request, so any machine that can read the workspace
can export them.
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
"""Number of most recent journal entries that the metrics cover."""

CACHE_SECONDS = 5.0
"""How long the values of one reading are served."""


def registry(config: Config, clock: Clock = time) -> CollectorRegistry:
    """Returns a registry with the metrics of a workspace.

    Args:
      clock: Clock that expires readings after CACHE_SECONDS.
    """
    result = CollectorRegistry()
    result.register(_StatusCollector(config, clock))
    return result


class ScheduleCounters(NamedTuple):
    """Counters of the scheduler process."""

    overlaps: Counter
    misfires: Counter
    failures: Counter


def schedule_counters(registry: CollectorRegistry) -> ScheduleCounters:
    """Adds the counters of the scheduler to a registry."""

    def counter(name: str, help: str) -> Counter:
        return Counter(f"searchforge_schedule_{name}", help, registry=registry)

    return ScheduleCounters(
        overlaps=counter("overlaps", "Number of scheduled runs skipped because another one was in progress."),
        misfires=counter("misfires", "Number of scheduled runs skipped because their time had passed too long ago."),
        failures=counter("failures", "Number of scheduled runs whose process failed."),
    )


def text(config: Config) -> str:
    """Returns the current metrics of a workspace in Prometheus' text format."""
    return exposition(registry(config))


def exposition(registry: CollectorRegistry) -> str:
    """Returns the metrics of a registry in Prometheus' text format."""
    return generate_latest(registry).decode()


@contextlib.contextmanager
def serve(registry: CollectorRegistry, port: int | None) -> Iterator[None]:
    """Serves metrics on 127.0.0.1 while the context is open.

    Args:
      port: TCP port; 0 chooses a free one, None serves nothing.

    Raises:
      UsageError: The port cannot be opened.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise UsageError(f"port {port} {reason}; choose another schedule.metrics_port") from None
    logger.info(f"metrics: http://{HOST}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _StatusCollector(Collector):
    """Collects the metrics of a workspace's status."""

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
                    current = status.read_status(self._config, RUNS, self._read_run)
                    self._ended = {run.run: run for run in current.runs if run.run in self._ended}
                    self._families = [_status_read(1), *_families(current)]
                except (SearchforgeError, OSError) as error:
                    logger.info(f"metrics cannot be read: {error}")
                    self._families = [_status_read(0)]
                self._read_at = self._clock.monotonic()
            return self._families

    def describe(self) -> Iterable[Metric]:
        return ()  # otherwise, registration would read the workspace

    def _read_run(self, storage: Storage, id: str) -> Run | None:
        """Reads a journal entry; entries of ended runs are read only once."""
        run = self._ended.get(id) or journal.read(storage, id)
        if run and run.state != "running":
            self._ended[id] = run
        return run


def _families(found: Status) -> Iterator[Metric]:
    """Yields all metrics of a status."""
    running = bool(found.running and not found.running.died)
    yield _gauge("reindex_running", "1 if a run is in progress, else 0.", running)
    yield _gauge("reindex_stopped", "1 if runs are refused until one is started with --resume, else 0.", found.stopped)
    yield _gauge("reindex_consecutive_failures", "Number of consecutive failed runs.", found.failures)
    states = collections.Counter(found.state(run) for run in found.runs)
    yield _labelled(
        "reindex_recent_runs",
        f"Number of runs by state, among the {RUNS} most recent ones in the journal.",
        "state",
        {state: states[state] for state in (*get_args(journal.RunState), "died")},
    )
    if found.runs:
        last = found.runs[0]
        yield _time("reindex_last_run_start", "Start time of the most recent run.", last.started)
        if last.ended:
            yield _time("reindex_last_run_end", "End time of the most recent run.", last.ended)
        yield _labelled("reindex_last_run_state", "State of the most recent run.", "state", {found.state(last): 1})
    if found.fresh:
        yield _time("reindex_last_success", "Start time of the most recent run whose release is live.", found.fresh)
    seconds: dict[str, float] = {}
    for run in found.runs:
        for entry in reversed(run.stages):
            if not entry.error:
                seconds.setdefault(entry.stage, entry.seconds)
    help = "Duration of the most recent successful attempt at each stage."
    yield _labelled("reindex_stage_duration_seconds", help, "stage", seconds)
    if found.lag:
        yield _time("corpus_listed", "Time at which the corpus was last listed.", found.lag.listed)
        yield _gauge("corpus_items", "Number of items in the corpus when it was last listed.", found.lag.items)
        pending = {change: getattr(found.lag, change) for change in ("added", "changed", "removed")}
        yield _labelled("corpus_pending_items", "Number of corpus changes not yet released.", "change", pending)
        help = "1 if a release matches the corpus but another one was made live, else 0."
        yield _gauge("corpus_release_withheld", help, bool(found.lag.withheld))
    if found.items:
        help = "Number of corpus items that cannot be used and are not in the index."
        yield _gauge("corpus_rejected_items", help, sum(found.items.rejected.values()))
        if found.items.rejected:
            help = "Number of rejected corpus items by reason."
            yield _labelled("corpus_rejected_items_by_reason", help, "reason", found.items.rejected)
    if found.next_run:
        yield _time("schedule_next_run", "Time of the next scheduled run.", found.next_run)
    yield from _release_families(found)


def _release_families(found: Status) -> Iterator[Metric]:
    """Yields the metrics of live releases; figures that a release lacks are omitted."""
    info = InfoMetricFamily("searchforge_release", "Live release of each channel.", labels=["channel"])
    intact = {channel: release for channel, release in found.live.items() if not release.damaged}
    for channel, release in intact.items():
        info.add_metric([channel], {"release": release.id, "encoder": release.provenance.get("encoder", "")})
    yield info
    damaged = {channel: bool(release.damaged) for channel, release in found.live.items()}
    yield _labelled("release_damaged", "1 if the channel's live release is damaged, else 0.", "channel", damaged)
    created = {channel: _seconds(release.created) for channel, release in intact.items()}
    help = "Time at which the channel's live release was published."
    yield _labelled("release_created_timestamp_seconds", help, "channel", created)
    size = {channel: release.bytes for channel, release in intact.items()}
    yield _labelled("release_size_bytes", "Total size of the files that apps download.", "channel", size)
    rejected = {channel: sum(release.rejected.values()) for channel, release in intact.items()}
    help = "Number of items that were rejected when the channel's live release was made."
    yield _labelled("release_rejected_items", help, "channel", rejected)
    for name, help, figure, unit in (
        ("images", "Number of images in the index.", "images", 1.0),
        ("recall_at_10", "Recall@10 of the index, compared with exact search.", "recall_at_10", 1.0),
        ("latency_seconds", "Median latency of a text query on one thread.", "latency_p50_ms", 1e-3),
    ):
        values = {
            channel: release.figures[figure] * unit for channel, release in intact.items() if figure in release.figures
        }
        yield _labelled(f"release_{name}", help, "channel", values)


def _status_read(value: float) -> Metric:
    return _gauge("status_read", "1 if the workspace could be read, else 0.", value)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"searchforge_{name}", help, value=float(value))


def _time(name: str, help: str, time: str) -> Metric:
    return _gauge(f"{name}_timestamp_seconds", help, _seconds(time))


def _labelled(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"searchforge_{name}", help, labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
