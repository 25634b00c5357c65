"""A run of `reindex`: under the lease, what the plan says is trained, embedded, indexed, checked and published.

Every stage finds what an earlier run committed, so that a run after a killed one goes on where it was. What each
attempt gave is in the journal. The live release changes by one write at the end, or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from infra import stages
from infra.reindex import journal, lease, retention
from infra.reindex.journal import Run, Stage, StageEntry
from infra.reindex.lease import Lease
from infra.reindex.notify import notify
from infra.reindex.plan import MODALITY, Plan, holding, make_plan
from infra.releases import channels, releases
from infra.releases.releases import Release
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Kind, Workspace
from searchforge.config import Config
from searchforge.console import logs
from searchforge.console.options import import_quietly
from searchforge.errors import ConflictError, GateError, JobError, SearchforgeError, UsageError
from searchforge.storage.base import Storage

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from beam_jobs.planning.listing import CorpusListing

Result = TypeVar("Result")

_FINAL = (UsageError, GateError, ConflictError)
"""Errors that another attempt would only meet again."""


class Stopped(BaseException):
    """A signal asked the process to end; its name is the argument."""


_STOPS = (Stopped, KeyboardInterrupt, SystemExit)
"""What ends a run from outside; the latter two where a library has handlers of its own."""


@dataclass(frozen=True)
class Calls:
    """What a run calls to do its work; each is a function with the signature of its default."""

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
    now: datetime | None = None,
    calls: Calls = Calls(),
) -> Run:
    """Brings the live release up to the corpus, if anything changed.

    Args:
      trigger: what started the run, for the journal.
      resume: whether to start although `reindex.max_failures` runs failed in a row.
      now: the time that ages are counted to when what is not needed is deleted; by default that of the storage.
      calls: what does the work.

    Returns:
      The run as it ended: published or unchanged.

    Raises:
      ConflictError: another run holds the lease, took it over meanwhile, or published first.
      GateError: what was built did not pass its check; the live release stays.
      UsageError, JobError: a stage failed, a signal stopped the run, or too many runs failed before it.
    """
    settings, storage = config.reindex, Workspace(config.workspace).storage
    last = next(journal.runs(storage), None)
    if last and last.failures >= settings.max_failures and not resume:
        raise JobError(
            f"{last.failures} runs of reindex failed in a row, the last one at {last.failed_stage}: {last.error}\n"
            "Mend the cause, then start with --resume (reindex.max_failures)"
        )
    # A write: what cannot be published to fails here, not after the training.
    releases.open_target(config).storage.now()
    id = journal.run_id()
    with logs.bind(run=id):
        with _stopping(), _leased(config, storage, id) as held:
            start = Run(
                run=id,
                started=journal.now(),
                beat=journal.now(),
                trigger=trigger,
                host=socket.gethostname(),
                fence=held.fence,
                channel=settings.channel,
                failures=_close_dead_runs(storage),
            )
            runner = _StageRunner(config, held, _Record(storage, start, settings.keep_runs), calls)
            error = _work(runner, now)
        run = runner.record.run
        _notify(config, run, calls)
        if error:
            raise error
        return run


def preview(config: Config) -> Plan:
    """Returns what a run would do; nothing is changed.

    Raises:
      UsageError, JobError: see infra.reindex.plan.make_plan.
    """
    with contextlib.ExitStack() as stack:
        pointer = channels.read(releases.open_target(config).storage, config.reindex.channel).pointer
        return _list_and_plan(config, pointer, stack)[0]


def _work(runner: _StageRunner, now: datetime | None) -> SearchforgeError | None:
    """Does the run and closes its journal entry; returns why it failed."""
    record = runner.record
    try:
        state, release = _bring_up(runner)
        record.update(release=release)
    except Exception as found:
        error = _for_user(found)
        failures = record.run.failures + 1
        record.close("failed", error=str(error), failed_stage=runner.current, failures=failures)
        return error
    except _STOPS as stop:
        record.close("failed", error=_described(stop), failed_stage=runner.current)
        return JobError(f"{_described(stop)} at {runner.current}; the next run goes on from there")
    with contextlib.suppress(*_STOPS):  # what is released stays so; the next run tidies up
        _tidy(runner, now)
    record.close(state, failures=0)
    return None


def _bring_up(runner: _StageRunner) -> tuple[Literal["published", "unchanged"], str]:
    """Does what the plan says; returns how that ended, and the release that holds the corpus as it is."""
    config, held, record, calls = runner.config, runner.held, runner.record, runner.calls
    workspace, target, channel = Workspace(config.workspace), releases.open_target(config), config.reindex.channel
    pointer = channels.read(target.storage, channel)
    if held.taken_over and pointer.exists:  # whoever was taken for dead publishes nothing from here on
        channels.advance_fence(target.storage, channel, held.fence)
    with contextlib.ExitStack() as stack:
        plan, listing = runner.do("plan", lambda: _list_and_plan(config, pointer.pointer, stack))
        record.update(plan=plan.entry)
        logger.info(f"  {plan.summary}")
        if plan.holds:
            return "unchanged", plan.holds
        channels.advance_fence(target.storage, channel, held.fence)
        encoder = plan.encoder or runner.make("train", lambda: calls.train(config))["id"]
        listings = iter(() if plan.entry.train else (listing,))  # one that is hours old is not used, nor one twice
        embedded = runner.make("embed", lambda: calls.embed(config, encoder, MODALITY, next(listings, None)))
    if same := holding(config, plan.known, Manifest.model_validate(embedded)):
        logger.info(f"  the files were written again, but hold what release {same.release.id} holds")
        return "unchanged", same.release.id
    build = runner.make("index", lambda: calls.index(config, embedded["id"], encoder))
    report = runner.make("check", lambda: calls.check(config, build["id"], channel))

    def publish() -> dict[str, Any]:
        published = calls.publish(
            workspace, target, report["id"], channel=channel, revive=False, fence=held.fence, expected=pointer
        )
        return {"id": published.id, "live": published.live}

    release = runner.make("publish", publish)
    return "published" if release["live"] else "unchanged", release["id"]


def _list_and_plan(
    config: Config, pointer: channels.Pointer, stack: contextlib.ExitStack
) -> tuple[Plan, CorpusListing]:
    """Returns the plan and the listing that it was made on, which `stack` deletes."""
    import_quietly("apache_beam")
    from beam_jobs.embed import list_corpus
    from beam_jobs.planning.listing import CorpusListing

    listing = stack.enter_context(CorpusListing())
    listing.add(list_corpus(config, MODALITY))
    return make_plan(config, listing, pointer), listing


def _tidy(runner: _StageRunner, now: datetime | None) -> None:
    """Deletes what is not needed any more; that this fails is written down, and does not fail the run."""
    config = runner.config
    workspace, target = Workspace(config.workspace), releases.open_target(config)

    def prune() -> dict[str, Any]:
        return {"id": "", "deleted": runner.calls.prune(config, workspace, target, runner.made, now)}

    try:
        runner.make("prune", prune)
    except SearchforgeError as error:
        logger.info(f"what is not needed any more is not deleted: {error}; the next run tries again")


class _Record:
    """The journal entry of this run."""

    def __init__(self, storage: Storage, run: Run, keep: int) -> None:
        self.run, self._storage, self._keep = run, storage, keep
        journal.write(storage, run)

    def update(self, **changes: Any) -> None:
        """Writes the entry with `changes`."""
        self.run = self.run.model_copy(update={**changes, "beat": journal.now()})
        journal.write(self._storage, self.run)

    def close(self, state: journal.State, **changes: Any) -> None:
        """Writes the entry for the last time; that this cannot be done hides no other error."""
        try:
            self.update(state=state, ended=journal.now(), **changes)
            journal.prune(self._storage, self._keep)
        except (SearchforgeError, OSError) as error:
            logger.info(f"the end of run {self.run.run} cannot be written down: {error}")


class _StageRunner:
    """Does stages under the lease, again where that may help, and writes down every attempt.

    Attributes:
      calls: what does them.
      current: the stage that is being done.
      made: ids of the artifacts that were made or found, by kind.
    """

    def __init__(self, config: Config, held: Lease, record: _Record, calls: Calls) -> None:
        self.config, self.held, self.record, self.calls = config, held, record, calls
        self.current: Stage | Literal["plan"] = "plan"
        self.made: dict[Kind, str] = {}

    def make(self, stage: Stage, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Like `do`, for a stage whose result has an `id`; the journal says what each attempt gave."""

        def noted() -> dict[str, Any]:
            started, start = journal.now(), time.monotonic()
            attempt = 1 + sum(entry.stage == stage for entry in self.record.run.stages)
            found: dict[str, str] = {}
            try:
                result = work()
                found["artifact"] = result["id"]
                return result
            except BaseException as error:
                found["error"] = _described(error)
                raise
            finally:
                seconds = round(time.monotonic() - start, 3)
                entry = StageEntry(stage=stage, attempt=attempt, started=started, seconds=seconds, **found)
                self.record.update(stages=(*self.record.run.stages, entry))

        result = self.do(stage, noted)
        if kind := stages.KIND_OF_STAGE.get(stage):
            self.made[kind] = result["id"]
        return result

    def do(self, stage: Stage | Literal["plan"], work: Callable[[], Result]) -> Result:
        """Returns what `work` gives.

        Raises:
          SearchforgeError: the last attempt failed, or another one would not help.
        """
        self.current = stage
        settings, attempt = self.config.reindex, 1
        while True:
            self.held.check()
            logger.info(f"{stage}{f', attempt {attempt} of {settings.attempts}' if attempt > 1 else ''}")
            try:
                with logs.bind(stage=stage):
                    return work()
            except Exception as error:  # of any library: nobody is there to read a stack trace
                if isinstance(error, _FINAL) or attempt == settings.attempts:
                    raise _for_user(error) from error
                pause = settings.backoff_seconds * 2 ** (attempt - 1)
                logger.info(f"  {stage} failed: {_described(error)}\n  the next attempt is in {pause:g} s")
            time.sleep(pause)
            attempt += 1


def _described(error: BaseException) -> str:
    if isinstance(error, _STOPS):
        return f"stopped by {error}" if isinstance(error, Stopped) else "stopped"
    return str(error) if isinstance(error, SearchforgeError) else f"{type(error).__name__}: {error}"


def _for_user(error: Exception) -> SearchforgeError:
    return error if isinstance(error, SearchforgeError) else JobError(_described(error))


def _leased(config: Config, storage: Storage, id: str) -> Lease:
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


def _close_dead_runs(storage: Storage) -> int:
    """Closes the entries of runs that died, which whoever holds the lease may; returns how many failed in a row."""
    for run in journal.runs(storage):
        if run.state != "running":
            return run.failures
        stage = run.stages[-1].stage if run.stages else "its start"
        logger.info(f"run {run.run}, of {run.started}, died after {stage}")
        error = f"the process was killed, or its machine was lost, after {stage}"
        journal.write(storage, run.model_copy(update={"state": "failed", "ended": run.beat, "error": error}))
    return 0


def _notify(config: Config, run: Run, calls: Calls) -> None:
    try:
        calls.notify(config.reindex, run)
    except Exception as error:  # the run has ended, and as it did
        logger.info(f"nobody was notified of run {run.run}: {_described(error)}")


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT raise Stopped, once: what is then to be finished is not disturbed again."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
        yield
        return
    stopped = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Stopped as stop_before_work:
        raise JobError(f"stopped by {stop_before_work}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
