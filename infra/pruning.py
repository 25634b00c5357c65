"""Deletes releases that are neither among the latest nor young, and neither live nor the one before."""

from __future__ import annotations

from datetime import datetime, timedelta

from infra import channels
from infra.releases import list_releases
from searchforge.workspace import MARKERS, Workspace


def prune(
    target: Workspace, keep: int, min_age_days: float, dry_run: bool = False, now: datetime | None = None
) -> list[str]:
    """Returns the ids of the releases that were deleted, or would be."""
    limit = (now or target.storage.now()) - timedelta(days=min_age_days)
    protected: set[str] = set()
    for channel in channels.channels(target.storage):
        protected |= channels.read(target.storage, channel).pointer.protected
    old = [
        release.id
        for release in list_releases(target)[keep:]
        if release.id not in protected and datetime.fromisoformat(release.created) <= limit
    ]
    if not dry_run:
        for id in old:
            with target.storage.snapshot(f"releases/{id}") as snapshot:
                snapshot.delete(first=MARKERS["releases"])
    return old
