"""The journal of re-indexing: one JSON file per run, with its plan, its attempts at every stage, and its result.

    reindex/runs/<run id>.json

A run rewrites its own file as it progresses; the file of a run that died is closed by the next run. Ids sort by start
time.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from searchforge.artifacts.manifest import Manifest, describe_outcomes
from searchforge.storage.base import Storage, list_records

logger = logging.getLogger(__name__)

FOLDER = "reindex/runs"

RunState = Literal["running", "published", "unchanged", "failed"]
Stage = Literal["train", "embed", "index", "check", "publish", "prune"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlanEntry(_Entry):
    """Plan of a run, as the journal records it.

    Attributes:
      mode: `nothing`, `delta` (the live encoder embeds the changes) or `full` (an encoder is trained, or another one
        embeds the whole corpus).
      reason: Why, as a sentence.
      items: Number of items in the corpus.
      added, changed, removed, unchanged: Numbers of items, compared with the embeddings that the run builds on.
      train, embed, index, check, publish: Whether the stage has work to do.
    """

    mode: Literal["nothing", "delta", "full"]
    reason: str
    items: int
    added: int
    changed: int
    removed: int
    unchanged: int
    train: bool = False
    embed: bool = False
    index: bool = False
    check: bool = False
    publish: bool = False

    @property
    def work(self) -> list[Stage]:
        """Returns the stages that have work to do, in order."""
        planned: tuple[Stage, ...] = ("train", "embed", "index", "check", "publish")
        return [stage for stage in planned if getattr(self, stage)]


class ItemsEntry(_Entry):
    """Outcome of every item of the corpus, with `items = embedded + reused + rejected`.

    Attributes:
      embeddings: Id of the embedding run that holds the items; its rejects-*.jsonl list the rejected ones.
      items: Number of items in the corpus.
      embedded: Number of items that this run embedded.
      reused: Number of items whose embedding was known.
      rejected: Number of items that cannot be used and are not in the index, by reason.
    """

    embeddings: str
    items: int
    embedded: int
    reused: int
    rejected: dict[str, int]

    @classmethod
    def of(cls, manifest: Manifest, finished: bool) -> ItemsEntry:
        """Returns the outcome recorded in a manifest; if it was finished before, nothing counts as embedded now."""
        embedded = 0 if finished else manifest.embedded
        return cls(
            embeddings=manifest.id,
            items=manifest.inputs,
            embedded=embedded,
            reused=manifest.records - embedded,
            rejected=manifest.rejected_by_reason,
        )

    @property
    def summary(self) -> str:
        """Human-readable counts in one line."""
        listed = f", listed in embeddings/{self.embeddings}/rejects-*.jsonl" if self.rejected else ""
        return describe_outcomes("items", self.embedded, self.reused, self.rejected) + listed


class StageEntry(_Entry):
    """One attempt at a stage.

    Attributes:
      attempt: Number of the attempt, from 1.
      started: UTC time, ISO 8601.
      seconds: Duration.
      artifact: Id of the artifact that the stage created or reused; empty if it failed.
      error: Why it failed; empty if it succeeded.
    """

    stage: Stage
    attempt: int
    started: str
    seconds: float
    artifact: str = ""
    error: str = ""


class Run(_Entry):
    """One run of `reindex`.

    Attributes:
      run: Id of the run.
      started, ended: UTC times, ISO 8601.
      beat: UTC time of the last write to the entry, ISO 8601.
      trigger: Origin of the run, such as `command` or `schedule`.
      fence: Fencing token of its lease.
      items: Outcome of every item of the corpus; None if the run ended before the corpus was embedded.
      stages: Attempts at stages, in order.
      release: Id of the release that it published, or that already matches the corpus.
      error: Why it failed; empty if it did not.
      failed_stage: Stage at which it failed.
      failures: Number of consecutive failed runs, including this one; stopped runs do not count.
    """

    version: Literal[1] = 1
    run: str
    state: RunState = "running"
    started: str
    beat: str
    ended: str | None = None
    trigger: str = "command"
    host: str = ""
    fence: int = 0
    channel: str = "production"
    plan: PlanEntry | None = None
    items: ItemsEntry | None = None
    stages: tuple[StageEntry, ...] = ()
    release: str | None = None
    error: str = ""
    failed_stage: Stage | Literal["plan", ""] = ""
    failures: int = 0

    @property
    def stage_in_progress(self) -> Stage | Literal["plan"]:
        """Stage that a running run is at: the first planned one that has not succeeded."""
        if self.plan is None:
            return "plan"
        done = {entry.stage for entry in self.stages if not entry.error}
        remaining: list[Stage] = [] if self.release else self.plan.work
        return next((stage for stage in remaining if stage not in done), "prune")

    def recorded_as_dead(self, last_renewal: str, failures: int) -> Run:
        """Returns the entry of this running run after its process died.

        Args:
          last_renewal: UTC time at which it last renewed its lease, ISO 8601; empty if unknown.
          failures: Number of consecutive failed runs before it.
        """
        stage = self.stage_in_progress
        changes = {
            "state": "failed",
            "ended": max(self.beat, last_renewal),
            "error": "its process was killed, for example because memory ran out, or its machine failed",
            "failed_stage": stage,
            "failures": failures + 1,
        }
        return self.model_copy(update=changes)


def now() -> str:
    """Returns the current UTC time, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def run_id() -> str:
    """Returns a unique id that sorts by time."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"


def write(storage: Storage, run: Run) -> None:
    """Writes the entry of a run, replacing an earlier one."""
    storage.write(_path(run.run), run.model_dump_json(indent=1).encode())


def ids(storage: Storage) -> list[str]:
    """Returns the ids of all runs, most recent first."""
    return [name.removesuffix(".json") for name in reversed(list_records(storage, FOLDER))]


def read(storage: Storage, id: str) -> Run | None:
    """Returns a run, or None if its file is missing or damaged; damage is logged."""
    try:
        return Run.model_validate_json(storage.read(_path(id)))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.info(f"{_path(id)} in {storage} is damaged and is skipped: {error.errors()[0]['msg']}")
        return None


def runs(storage: Storage) -> Iterator[Run]:
    """Returns an iterator over all readable runs, most recent first; each file is read on demand."""
    return (run for id in ids(storage) if (run := read(storage, id)))


def latest_release(storage: Storage, channel: str) -> str | None:
    """Returns the release of the channel's most recent run that has one."""
    return next((run.release for run in runs(storage) if run.release and run.channel == channel), None)


def prune(storage: Storage, keep: int) -> None:
    """Deletes all but the `keep` most recent entries."""
    for id in ids(storage)[keep:]:
        storage.delete(_path(id))


def _path(id: str) -> str:
    return f"{FOLDER}/{id}.json"
