"""A run of `reindex`: holds the lease, executes the stages of the plan, and records every attempt in the journal.

Every stage reuses what earlier runs committed, so a run resumes where a killed one stopped. The live release changes
by a single write at the end, or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from infra import stages
from infra.reindex import journal, lease, retention
from infra.reindex.journal import ItemsEntry, Run, Stage, StageEntry
from infra.reindex.lease import Lease
from infra.reindex.notify import notify
from infra.reindex.plan import MODALITY, ReindexPlan, find_matching_release, make_plan
from infra.releases import channels, releases
from infra.releases.releases import Release
from searchforge import log_context
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Kind, Workspace
from searchforge.config import Config
from searchforge.errors import JobError, SearchforgeError, may_pass
from searchforge.native_output import import_quietly
from searchforge.storage.base import Storage

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from beam_jobs.planning.listing import CorpusListing

Result = TypeVar("Result")


class Stopped(BaseException):
    """A signal asked the process to stop; the argument is the signal's name."""


_STOP_REQUESTS = (Stopped, KeyboardInterrupt, SystemExit)
"""Exceptions that stop a run from outside; the last two come from signal handlers of libraries."""


@dataclass(frozen=True)
class StageFunctions:
    """Functions that carry out the stages of a run; each has the signature of its default."""

    train: Callable[..., dict[str, Any]] = stages.train
    embed: Callable[..., dict[str, Any]] = stages.embed
    index: Callable[..., dict[str, Any]] = stages.index
    check: Callable[..., dict[str, Any]] = stages.check
    publish: Callable[..., Release] = releases.publish
    prune: Callable[..., object] = retention.prune
    notify: Callable[..., None] = notify


def reindex(
    config: Config,
    *,
    trigger: str = "command",
    resume: bool = False,
    allow_removal: bool = False,
    now: datetime | None = None,
    functions: StageFunctions = StageFunctions(),
) -> Run:
    """Updates the live release to match the corpus, if anything changed.

    Args:
      trigger: Origin of the run, for the journal.
      resume: Whether to start even though `reindex.max_failures` consecutive runs failed.
      allow_removal: Whether the index may have fewer items than `check.max_items_drop` allows.
      now: Reference time for ages when deleting what is no longer needed; by default the storage's clock.
      functions: Functions that carry out the stages.

    Returns:
      The journal entry of the completed run, whose state is `published` or `unchanged`.

    Raises:
      ConflictError: Another run holds the lease, took it over, or published first.
      GateError: The searcher did not pass its check; the live release stays.
      UsageError, JobError: A stage failed, a signal stopped the run, or too many earlier runs failed.
    """
    stages.require_publishable(config)
    if allow_removal:
        functions = replace(functions, check=functools.partial(functions.check, allow_removal=True))
    settings, storage = config.reindex, Workspace(config.workspace).storage
    # This writes a file, so a target that is not writable fails now rather than after training.
    releases.open_target(config).storage.now()
    id = journal.run_id()
    with log_context.bind(run=id):
        with _raise_on_signals(), _acquire_lease(config, storage, id) as held_lease:
            for dead in _record_dead_runs(storage, held_lease):
                _notify(config, dead, functions)
            last = next(journal.runs(storage), None)
            if last and last.failures >= settings.max_failures and not resume:
                raise JobError(
                    f"{last.failures} consecutive runs of reindex failed, the last one at {last.failed_stage}: "
                    f"{last.error}\nFix the cause, then start again with --resume (reindex.max_failures)"
                )
            start = Run(
                run=id,
                started=journal.now(),
                beat=journal.now(),
                trigger=trigger,
                host=socket.gethostname(),
                fence=held_lease.fence,
                channel=settings.channel,
                failures=last.failures if last else 0,
            )
            entry = _JournalEntry(storage, start, settings.keep_runs)
            runner = _StageRunner(config, held_lease, entry, functions)
            error = _execute(runner, now)
        run = runner.entry.run
        _notify(config, run, functions)
        if error:
            raise error
        return run


def preview(config: Config) -> ReindexPlan:
    """Returns the plan of a run without changing anything.

    Raises:
      UsageError, JobError: See infra.reindex.plan.make_plan.
    """
    stages.require_publishable(config)
    with contextlib.ExitStack() as stack:
        pointer = channels.read(releases.open_target(config).storage, config.reindex.channel).pointer
        return _list_and_plan(config, pointer, stack)[0]


def _execute(runner: _StageRunner, now: datetime | None) -> SearchforgeError | None:
    """Executes the run and closes its journal entry; returns the error with which it failed, or None."""
    entry = runner.entry
    try:
        state, release = _run_stages(runner)
        entry.update(release=release)
    except Exception as found:
        error = _as_searchforge_error(found)
        failures = entry.run.failures + 1
        entry.close("failed", error=str(error), failed_stage=runner.current, failures=failures)
        return error
    except _STOP_REQUESTS as stop:
        entry.close("failed", error=_describe(stop), failed_stage=runner.current)
        return JobError(f"{_describe(stop)} at {runner.current}; the next run resumes there")
    with contextlib.suppress(*_STOP_REQUESTS):  # the result stands, and the next run prunes
        _prune(runner, now)
    entry.close(state, failures=0)
    return None


def _run_stages(runner: _StageRunner) -> tuple[Literal["published", "unchanged"], str]:
    """Plans and runs the stages; returns the run's final state and the release that matches the corpus."""
    config, held_lease, entry, functions = runner.config, runner.held_lease, runner.entry, runner.functions
    workspace, target, channel = Workspace(config.workspace), releases.open_target(config), config.reindex.channel
    current = channels.read(target.storage, channel)
    if held_lease.taken_over and current.exists:  # the former holder must not publish from here on
        channels.advance_fence(target.storage, channel, held_lease.fence)
    with contextlib.ExitStack() as stack:
        plan, listing = runner.retry("plan", lambda: _list_and_plan(config, current.pointer, stack))
        entry.update(plan=plan.entry, items=plan.manifest and ItemsEntry.of(plan.manifest, finished=True))
        logger.info(f"  {plan.summary}")
        if plan.matching_release:
            return "unchanged", plan.matching_release
        channels.advance_fence(target.storage, channel, held_lease.fence)
        encoder = plan.encoder or runner.run("train", lambda: functions.train(config))["id"]
        # A listing can be used once, and is outdated after a training.
        listings = iter(() if plan.entry.train else (listing,))
        manifest = runner.run("embed", lambda: functions.embed(config, encoder, MODALITY, next(listings, None)))
    embedded = Manifest.model_validate(manifest)
    items = ItemsEntry.of(embedded, finished=plan.manifest is not None and plan.manifest.id == embedded.id)
    entry.update(items=items)
    logger.info(f"  {items.summary}")
    if match := find_matching_release(config, plan.known, embedded):
        logger.info(f"  the items that could be embedded match release {match.release.id}")
        return "unchanged", match.release.id
    build = runner.run("index", lambda: functions.index(config, manifest["id"], encoder))
    report = runner.run("check", lambda: functions.check(config, build["id"], channel))

    def publish() -> dict[str, Any]:
        published = functions.publish(
            workspace, target, report["id"], channel=channel, revive=False, fence=held_lease.fence, expected=current
        )
        return {"id": published.id, "live": published.live}

    release = runner.run("publish", publish)
    return "published" if release["live"] else "unchanged", release["id"]


def _list_and_plan(
    config: Config, pointer: channels.Pointer, stack: contextlib.ExitStack
) -> tuple[ReindexPlan, CorpusListing]:
    """Returns the plan and the corpus listing that it is based on, which `stack` deletes."""
    import_quietly("apache_beam")
    from beam_jobs.embed import list_corpus
    from beam_jobs.planning.listing import CorpusListing

    listing = stack.enter_context(CorpusListing())
    listing.add(list_corpus(config, MODALITY))
    return make_plan(config, listing, pointer), listing


def _prune(runner: _StageRunner, now: datetime | None) -> None:
    """Deletes what is no longer needed; a failure is recorded but does not fail the run."""
    config = runner.config
    workspace, target = Workspace(config.workspace), releases.open_target(config)

    def prune() -> dict[str, Any]:
        return {"id": "", "deleted": runner.functions.prune(config, workspace, target, runner.artifacts, now)}

    try:
        runner.run("prune", prune)
    except SearchforgeError as error:
        logger.info(f"pruning failed: {error}; the next run tries again")


class _JournalEntry:
    """Writes the journal entry of the current run."""

    def __init__(self, storage: Storage, run: Run, keep: int) -> None:
        self.run, self._storage, self._keep = run, storage, keep
        journal.write(storage, run)

    def update(self, **changes: Any) -> None:
        """Writes the entry with `changes`."""
        self.run = self.run.model_copy(update={**changes, "beat": journal.now()})
        journal.write(self._storage, self.run)

    def close(self, state: journal.RunState, **changes: Any) -> None:
        """Writes the final entry; a failure to do so is logged, so that it does not replace the run's own error."""
        try:
            self.update(state=state, ended=journal.now(), **changes)
            journal.prune(self._storage, self._keep)
        except (SearchforgeError, OSError) as error:
            logger.info(f"the end of run {self.run.run} could not be recorded: {error}")


class _StageRunner:
    """Runs stages under the lease with retries, and records every attempt.

    Attributes:
      functions: Functions that carry out the stages.
      current: Stage in progress.
      artifacts: Ids of the artifacts that the stages created or reused, by kind.
    """

    def __init__(self, config: Config, held_lease: Lease, entry: _JournalEntry, functions: StageFunctions) -> None:
        self.config, self.held_lease, self.entry, self.functions = config, held_lease, entry, functions
        self.current: Stage | Literal["plan"] = "plan"
        self.artifacts: dict[Kind, str] = {}

    def run(self, stage: Stage, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Runs a stage whose result has an `id`, like `retry`, and records every attempt in the journal."""

        def recorded() -> dict[str, Any]:
            started, start = journal.now(), time.monotonic()
            attempt = 1 + sum(entry.stage == stage for entry in self.entry.run.stages)
            outcome: dict[str, str] = {}
            try:
                result = work()
                outcome["artifact"] = result["id"]
                return result
            except BaseException as error:
                outcome["error"] = _describe(error)
                raise
            finally:
                seconds = round(time.monotonic() - start, 3)
                entry = StageEntry(stage=stage, attempt=attempt, started=started, seconds=seconds, **outcome)
                self.entry.update(stages=(*self.entry.run.stages, entry))

        result = self.retry(stage, recorded)
        if kind := stages.KIND_OF_STAGE.get(stage):
            self.artifacts[kind] = result["id"]
        return result

    def retry(self, stage: Stage | Literal["plan"], work: Callable[[], Result]) -> Result:
        """Calls `work` until it succeeds, with exponential back-off; returns its result.

        Raises:
          SearchforgeError: The last attempt failed, or another one would fail in the same way.
        """
        self.current = stage
        settings, attempt = self.config.reindex, 1
        while True:
            self.held_lease.check()
            logger.info(f"{stage}{f', attempt {attempt} of {settings.attempts}' if attempt > 1 else ''}")
            try:
                with log_context.bind(stage=stage):
                    return work()
            except Exception as error:  # libraries raise anything, and a schedule has no use for a traceback
                if not may_pass(error) or attempt == settings.attempts:
                    raise _as_searchforge_error(error) from error
                pause = settings.backoff_seconds * 2 ** (attempt - 1)
                logger.info(f"  {stage} failed: {_describe(error)}\n  trying again in {pause:g} s")
            time.sleep(pause)
            attempt += 1


def _describe(error: BaseException) -> str:
    if isinstance(error, _STOP_REQUESTS):
        return f"stopped by {error}" if isinstance(error, Stopped) else "stopped"
    return str(error) if isinstance(error, SearchforgeError) else f"{type(error).__name__}: {error}"


def _as_searchforge_error(error: Exception) -> SearchforgeError:
    return error if isinstance(error, SearchforgeError) else JobError(_describe(error))


def _acquire_lease(config: Config, storage: Storage, id: str) -> Lease:
    settings = config.reindex

    def known_fence() -> int:
        last = next(journal.runs(storage), None)
        pointer = channels.read(releases.open_target(config).storage, settings.channel).pointer
        return max(last.fence if last else 0, pointer.fence)

    return lease.acquire(
        Workspace(config.workspace).storage,
        id,
        lease_seconds=settings.lease_seconds,
        wait_seconds=settings.wait_seconds,
        max_seconds=settings.max_hours and settings.max_hours * 3600,
        known_fence=known_fence,
    )


def _record_dead_runs(storage: Storage, held_lease: Lease) -> list[Run]:
    """Records runs whose process died as failed; returns them, the oldest first."""
    unclosed = list(itertools.takewhile(lambda run: run.state == "running", journal.runs(storage)))
    recorded: list[Run] = []
    for run in reversed(unclosed):
        last_renewal = held_lease.last_renewal if run.run == held_lease.taken_over else ""
        dead = run.recorded_as_dead(last_renewal, recorded[-1].failures if recorded else run.failures)
        logger.info(f"run {dead.run}, started at {dead.started}, failed at {dead.failed_stage}: {dead.error}")
        journal.write(storage, dead)
        recorded.append(dead)
    return recorded


def _notify(config: Config, run: Run, functions: StageFunctions) -> None:
    try:
        functions.notify(config.reindex, run)
    except Exception as error:  # must not change the result of the run
        logger.info(f"no notification of run {run.run} was sent: {_describe(error)}")


@contextlib.contextmanager
def _raise_on_signals() -> Iterator[None]:
    """Makes the first SIGTERM or SIGINT raise Stopped; later ones are ignored, so that clean-up is not interrupted."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    stopped = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise Stopped(signal.Signals(number).name)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Stopped as request:  # before the stages began, or after they ended
        raise JobError(f"stopped by {request}") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
