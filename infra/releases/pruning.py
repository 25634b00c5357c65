"""Deletes old releases, leftovers of killed uploads and deletions, and old records of refusals."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from infra.releases import channels, tombstones
from infra.releases.releases import REFUSED
from searchforge.artifacts.workspace import MARKERS, Workspace
from searchforge.storage.base import Storage, is_older, list_abandoned, list_records

ABANDONED_DAYS = 1.0
"""Age in days at which an unfinished upload or temporary file is taken for abandoned."""


@dataclass(frozen=True)
class PruneResult:
    """Counts and ids of what a prune deleted, or would delete in a dry run.

    Attributes:
      releases: Ids of complete releases.
      unfinished: Ids of incomplete releases: uploads and deletions that were killed.
      refusals: Number of records of refused publications.
      temporary: Number of temporary files of killed writers.
      bytes: Total size of the deleted releases, complete or not.
      kept: Number of complete releases that stay.
    """

    releases: list[str]
    unfinished: list[str]
    refusals: int
    temporary: int
    bytes: int
    kept: int
    dry_run: bool


@dataclass(frozen=True)
class _ReleaseFolder:
    """A folder below releases/.

    Attributes:
      complete: Whether it has the marker that commits a release.
      last_used: Time of the last write to it, or of the end of its last time live, whichever is later.
      bytes: Total size of its files.
    """

    id: str
    complete: bool
    last_used: datetime
    bytes: int


def prune(
    target: Workspace, keep: int, min_age_days: float, dry_run: bool = False, now: datetime | None = None
) -> PruneResult:
    """Deletes releases that are neither among the `keep` most recent ones nor younger than `min_age_days`.

    The live release of every channel and its predecessor always stay. A release's age counts from the time it was
    written or last live. Leftovers of killed processes are deleted once they are a day old. A prune that is killed is
    completed by the next one.

    Args:
      now: Reference time for ages; by default the storage's clock.

    Raises:
      JobError: A pointer is damaged, so the live release is unknown; nothing is deleted.
    """
    storage = target.storage
    now = now or storage.now()
    pointers = [channels.read(storage, channel).pointer for channel in channels.channels(storage)]
    protected = {id for pointer in pointers for id in pointer.protected}
    last_live: dict[str, datetime] = {}
    for pointer in pointers:
        for earlier in pointer.history:
            last_live[earlier.release] = max(earlier.until, last_live.get(earlier.release, earlier.until))
    folders = [
        found for id in storage.list_folders("releases") if (found := _read_folder(storage, id, last_live.get(id)))
    ]
    marked = {name.removesuffix(".json") for name in list_records(storage, tombstones.FOLDER)}
    complete = sorted((folder for folder in folders if folder.complete), key=lambda f: f.last_used, reverse=True)
    age_limit, abandoned = now - timedelta(days=min_age_days), now - timedelta(days=ABANDONED_DAYS)
    releases = {folder.id for folder in complete[keep:] if folder.last_used <= age_limit} - protected
    unfinished = {folder.id for folder in folders if not folder.complete and folder.last_used <= abandoned}
    unfinished |= marked - releases
    if not dry_run:
        deleted = tombstones.delete_releases(storage, releases | unfinished)
        releases, unfinished = releases & deleted, unfinished & deleted
    else:
        unfinished -= protected
    return PruneResult(
        releases=sorted(releases),
        unfinished=sorted(unfinished),
        refusals=_prune_refusals(storage, keep, age_limit, dry_run),
        temporary=_prune_temporary(storage, abandoned, dry_run),
        bytes=sum(folder.bytes for folder in folders if folder.id in releases | unfinished),
        kept=len({folder.id for folder in complete} - releases - unfinished),
        dry_run=dry_run,
    )


def _read_folder(storage: Storage, id: str, last_live: datetime | None) -> _ReleaseFolder | None:
    """Returns a release's folder, or None if it has no files."""
    with storage.snapshot(f"releases/{id}") as snapshot:
        objects = snapshot.objects
    if not objects:
        return None
    times = [object.modified for object in objects.values()] + ([last_live] if last_live else [])
    complete = MARKERS["releases"] in objects
    return _ReleaseFolder(id, complete, max(times), sum(object.bytes for object in objects.values()))


def _prune_refusals(storage: Storage, keep: int, age_limit: datetime, dry_run: bool) -> int:
    names = list_records(storage, REFUSED)[::-1][keep:]  # names begin with their time
    paths = [path for name in names if is_older(storage, path := f"{REFUSED}/{name}", age_limit)]
    return _delete(storage, paths, dry_run)


def _prune_temporary(storage: Storage, limit: datetime, dry_run: bool) -> int:
    folders = ("releases", REFUSED, tombstones.FOLDER)
    return _delete(storage, [path for folder in folders for path in list_abandoned(storage, folder, limit)], dry_run)


def _delete(storage: Storage, paths: list[str], dry_run: bool) -> int:
    """Deletes files unless this is a dry run; returns their number."""
    for path in paths if not dry_run else ():
        storage.delete(path)
    return len(paths)
