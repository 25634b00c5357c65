"""Writes journal entries and publishes releases for tests."""

from __future__ import annotations

import os
import signal
from datetime import datetime, timedelta, timezone
from typing import Any

from infra.reindex import journal, lease
from infra.reindex.journal import PlanEntry, Run, StageEntry
from infra.releases import releases
from infra.releases.releases import Release
from searchforge.artifacts.workspace import Workspace
from tests.infra.releases.sample_artifacts import commit_checked

PLAN = PlanEntry(mode="delta", reason="the corpus changed", items=100, added=3, changed=2, removed=1, unchanged=95)


def ago(**parts: float) -> str:
    """Returns a past UTC time, ISO 8601."""
    return (datetime.now(timezone.utc) - timedelta(**parts)).isoformat(timespec="milliseconds")


def write_run(workspace: Workspace, state: journal.RunState, hours: float, **fields: Any) -> Run:
    """Writes the journal entry of a run that started `hours` ago, and took a minute unless it is still running."""
    started = datetime.now(timezone.utc) - timedelta(hours=hours)
    ended = None if state == "running" else (started + timedelta(minutes=1)).isoformat()
    id = f"{started:%Y%m%dT%H%M%S.%fZ}-abcdef"
    entry = {"plan": PLAN, **fields}
    run = Run(run=id, state=state, started=started.isoformat(), beat=started.isoformat(), ended=ended, **entry)
    journal.write(workspace.storage, run)
    return run


def acquire_lease_and_die(workspace: Workspace, run: str) -> None:
    """Leaves the lease of a run whose process was killed."""
    process = os.fork()
    if process == 0:
        try:
            lease.acquire(workspace.storage, run, lease_seconds=3600)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)


def stage(name: journal.Stage, seconds: float, error: str = "") -> StageEntry:
    return StageEntry(stage=name, attempt=1, started=ago(), seconds=seconds, error=error)


def publish(workspace: Workspace, name: str = "a") -> Release:
    """Publishes a searcher that passed its check."""
    return releases.publish(workspace, workspace, commit_checked(workspace, name))
