"""The Beam pipeline, with one element per shard, and its metrics on any runner."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.utils.shared import Shared

from beam_jobs.embedding.embedder import Embedder, EmbedOptions, Outcome, write_outcome
from beam_jobs.embedding.shard_progress import report_progress
from beam_jobs.planning.plan import EmbedPlan
from beam_jobs.planning.shards import Shard, ShardReport, read_plan, read_report, write_report
from searchforge.artifacts.workspace import Workspace
from searchforge.beam_runner import interruptible, runner_option
from searchforge.config import EmbedConfig
from searchforge.errors import JobError, SearchforgeError
from searchforge.proxy import bypass_proxy
from searchforge.storage.base import Storage

NAMESPACE = "searchforge"
"""Namespace of the job's Beam metrics: counters `embedded`, `reused`, `rejected_<reason>` and `bytes_read`;
distributions `batch_size` and `batch_ms` of the encoder's calls (one mean per shard) and `shard_seconds`."""


class EmbedShard(beam.DoFn):
    """Embeds a shard unless it is finished. Writing one shard overlaps with embedding the next."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._shared = Shared()
        self._writing: Future[ShardReport] | None = None

    def setup(self) -> None:
        self._storage = Workspace(self._options.workspace).storage
        # One model and one thread pool per process, however many shards the runner gives it concurrently.
        self._embedder: Embedder = self._shared.acquire(lambda: Embedder(self._options), tag=repr(self._options))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def start_bundle(self) -> None:
        self._writing = None

    def process(self, shard: Shard) -> None:
        report = read_report(self._storage, self._options.folder, shard)
        if report is not None:
            _update_metrics(report)
            return
        outcome = self._embedder.embed(read_plan(self._storage, self._options.folder, shard))
        self.finish_bundle()  # keeps at most one unwritten shard in memory
        self._writing = self._writer.submit(self._write, shard, outcome)

    def finish_bundle(self) -> None:
        if self._writing:
            _update_metrics(self._writing.result())
            self._writing = None

    def teardown(self) -> None:
        self._writer.shutdown()

    def _write(self, shard: Shard, outcome: Outcome) -> ShardReport:
        report = write_outcome(self._storage, self._options.folder, shard, outcome)
        write_report(self._storage, self._options.folder, shard, report)
        return report


def _update_metrics(report: ShardReport) -> None:
    Metrics.counter(NAMESPACE, "embedded").inc(report.embedded)
    Metrics.counter(NAMESPACE, "reused").inc(report.reused)
    Metrics.counter(NAMESPACE, "bytes_read").inc(report.bytes_read)
    for reason, count in report.rejected.items():
        Metrics.counter(NAMESPACE, f"rejected_{reason}").inc(count)
    Metrics.distribution(NAMESPACE, "shard_seconds").update(round(report.seconds))
    for name, observed in (("batch_size", report.batch_size), ("batch_ms", report.batch_ms)):
        if observed.count:
            Metrics.distribution(NAMESPACE, name).update(round(observed.mean))


def run_pipeline(plan: EmbedPlan, options: EmbedOptions, config: EmbedConfig, storage: Storage) -> None:
    """Embeds every unfinished shard of a plan.

    Raises:
      JobError: The job failed; finished shards are kept.
    """
    arguments = [runner_option(config.runner), *config.beam_options]
    bypass_proxy()
    try:
        with (
            report_progress(plan.shards, plan.sizes, options.folder, storage),
            interruptible(),
            beam.Pipeline(options=PipelineOptions(arguments)) as pipeline,
        ):
            _ = (
                pipeline
                | "Shards" >> beam.Create(plan.shards)
                | "Spread" >> beam.Reshuffle()
                | "Embed" >> beam.ParDo(EmbedShard(options))
            )
    except SearchforgeError:
        raise
    except Exception as error:  # each runner raises its own exception types
        raise JobError(
            f"the Beam job failed: {error}\n"
            f"Finished shards are kept in {storage.root}/{options.folder}; run the command again"
        ) from error


def threads_per_worker(config: EmbedConfig) -> int:
    """Returns the number of threads per worker; 0 if it depends on the cores of the worker's machine."""
    if config.threads or config.runner != "DirectRunner":
        return config.threads or 0
    cores = len(os.sched_getaffinity(0))
    local = PipelineOptions(list(config.beam_options)).view_as(DirectOptions)
    return max(1, cores // (local.direct_num_workers or cores))
