"""The journal: one JSON file a run, in the workspace, that says what it planned, did and failed at.

    reindex/runs/<run id>.json

Only the run itself writes its file, whole each time; that of a run which died is closed by its successor. Ids sort by
time.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from searchforge.storage.base import Storage

logger = logging.getLogger(__name__)

FOLDER = "reindex/runs"

State = Literal["running", "published", "unchanged", "failed"]
Stage = Literal["train", "embed", "index", "check", "publish", "prune"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlanEntry(_Entry):
    """What a run found and decided.

    Attributes:
      mode: `nothing`, `delta` (the live encoder embeds what changed) or `full` (an encoder is trained, or everything is
        embedded by another one).
      reason: why, as a sentence.
      items: of the corpus.
      added, changed, removed, unchanged: items against the embeddings that are built on.
      train, embed, index, check, publish: whether the stage has work to do.
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
        """Stages that have work to do, in order."""
        planned: tuple[Stage, ...] = ("train", "embed", "index", "check", "publish")
        return [stage for stage in planned if getattr(self, stage)]


class StageEntry(_Entry):
    """One attempt at a stage.

    Attributes:
      seconds: that it took.
      artifact: id of what it made or found.
      error: why it failed; empty where it did not.
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
      started, ended, beat: UTC times, ISO 8601; `beat` is that of the last write.
      trigger: what started it, such as `command` or `schedule`.
      fence: of its lease; a later holder's is greater.
      stages: attempts, in order.
      release: that it published, or that holds the corpus as it is already.
      error: why it failed, and `failed_stage` where.
      failures: runs that failed in a row, this one included; one that was stopped or killed does not count.
    """

    version: Literal[1] = 1
    run: str
    state: State = "running"
    started: str
    beat: str
    ended: str | None = None
    trigger: str = "command"
    host: str = ""
    fence: int = 0
    channel: str = "production"
    plan: PlanEntry | None = None
    stages: tuple[StageEntry, ...] = ()
    release: str | None = None
    error: str = ""
    failed_stage: Stage | Literal["plan", ""] = ""
    failures: int = 0


def now() -> str:
    """The UTC time, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def run_id() -> str:
    """A fresh id that sorts by time."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"


def write(storage: Storage, run: Run) -> None:
    """Writes a run's file whole."""
    storage.write(_path(run.run), run.model_dump_json(indent=1).encode())


def ids(storage: Storage) -> list[str]:
    """Ids of all runs, the latest first."""
    return sorted((name.removesuffix(".json") for name in storage.list_files(FOLDER) if _is_run(name)), reverse=True)


def read(storage: Storage, id: str) -> Run | None:
    """Returns a run, None where its file is gone or damaged, which is said."""
    try:
        return Run.model_validate_json(storage.read(_path(id)))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.info(f"{_path(id)} in {storage} is damaged and left out: {error.errors()[0]['msg']}")
        return None


def runs(storage: Storage) -> Iterator[Run]:
    """All readable runs, the latest first; each is read when it is asked for."""
    return (run for id in ids(storage) if (run := read(storage, id)))


def latest_release(storage: Storage, channel: str) -> str | None:
    """Returns the release that the latest run with a result published or found, in a channel."""
    return next((run.release for run in runs(storage) if run.release and run.channel == channel), None)


def prune(storage: Storage, keep: int) -> None:
    """Deletes all entries but the latest ones."""
    for id in ids(storage)[keep:]:
        storage.delete(_path(id))


def _path(id: str) -> str:
    return f"{FOLDER}/{id}.json"


def _is_run(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")
