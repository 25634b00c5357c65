"""A workspace that was re-indexed: runs in its journal, and a published release."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from infra import releases
from infra.reindex import journal
from infra.reindex.journal import PlanEntry, Run, StageEntry
from infra.releases import Release
from searchforge.hashing import sha256_bytes
from searchforge.workspace import Workspace

FILES = {"text_searcher.tflite": b"text" * 100, "image_searcher.tflite": b"image" * 100}

PLAN = PlanEntry(mode="delta", reason="the corpus changed", items=100, added=3, changed=2, removed=1, unchanged=95)


def ago(**parts: float) -> str:
    """The UTC time so long ago, ISO 8601."""
    return (datetime.now(timezone.utc) - timedelta(**parts)).isoformat(timespec="milliseconds")


def write_run(workspace: Workspace, state: journal.State, hours: float, **fields: Any) -> Run:
    """Writes the journal entry of a run that started so long ago, and took a minute if it ended."""
    started = datetime.now(timezone.utc) - timedelta(hours=hours)
    ended = None if state == "running" else (started + timedelta(minutes=1)).isoformat()
    id = f"{started:%Y%m%dT%H%M%S.%fZ}-abcdef"
    entry = {"plan": PLAN, **fields}
    run = Run(run=id, state=state, started=started.isoformat(), beat=started.isoformat(), ended=ended, **entry)
    journal.write(workspace.storage, run)
    return run


def stage(name: journal.Stage, seconds: float, error: str = "") -> StageEntry:
    return StageEntry(stage=name, attempt=1, started=ago(), seconds=seconds, error=error)


def publish(workspace: Workspace, name: str = "a") -> Release:
    """Publishes a searcher that passed its check."""
    with workspace.create("searchers", name) as staging:
        for file, content in FILES.items():
            (staging.path / file).write_bytes(content)
        staging.commit({"id": name})
    with workspace.create("checks", name) as staging:
        staging.commit(
            {
                "id": name,
                "passed": True,
                "gates": [],
                "searcher": name,
                "fingerprint": "f" * 64,
                "files": {
                    file: {"sha256": sha256_bytes(content), "bytes": len(content)} for file, content in FILES.items()
                },
                "figures": {"images": 97, "recall_at_10": 0.96, "latency_p50_ms": 5.5},
                "provenance": {"encoder": "e1", "embeddings": "m", "searcher": name},
            }
        )
    return releases.publish(workspace, workspace, name)
