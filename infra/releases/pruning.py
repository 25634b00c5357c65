"""Prune: deletes the releases that nobody goes back to, and what died before it became one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from infra.releases import channels, tombstones
from infra.releases.releases import REFUSED
from searchforge.artifacts.workspace import MARKERS, Workspace
from searchforge.storage.base import Storage

ABANDONED_DAYS = 1.0
"""A release without its marker whose youngest file is older is no upload in progress, but one that died."""


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be.

    Attributes:
      releases: ids.
      unfinished: ids of uploads and deletions that died on the way.
      refusals: entries about what was not published.
      temporary: files of writers that died.
      bytes: of releases and of what was unfinished.
      kept: releases that stay.
    """

    releases: list[str]
    unfinished: list[str]
    refusals: int
    temporary: int
    bytes: int
    kept: int
    dry_run: bool


@dataclass(frozen=True)
class _Found:
    """A folder of releases/.

    Attributes:
      whole: whether its marker is there.
      used: when it was written or last live, whichever is later.
    """

    id: str
    whole: bool
    used: datetime
    bytes: int


def prune(
    target: Workspace, keep: int, min_age_days: float, dry_run: bool = False, now: datetime | None = None
) -> Pruned:
    """Deletes releases that are neither among the `keep` latest ones nor younger than `min_age_days`.

    The live release of every channel and its predecessor always stay. A release's age counts from when it was written
    or last live. What killed processes left is deleted once it is a day old. A run that is killed is finished by the
    next one.

    Args:
      now: the time that ages are counted to; by default that of the storage.

    Raises:
      JobError: a pointer is damaged, so nobody knows what is live; nothing is deleted.
    """
    storage = target.storage
    now = now or storage.now()
    pointers = [channels.read(storage, channel).pointer for channel in channels.channels(storage)]
    protected = {id for pointer in pointers for id in pointer.protected}
    last_live: dict[str, datetime] = {}
    for pointer in pointers:
        for earlier in pointer.history:
            last_live[earlier.release] = max(earlier.until, last_live.get(earlier.release, earlier.until))
    found = [entry for id in storage.names("releases") if (entry := _look(storage, id, last_live.get(id)))]
    begun = {name.removesuffix(".json") for name in storage.files(tombstones.FOLDER) if _is_entry(name)}
    whole = sorted((entry for entry in found if entry.whole), key=lambda entry: entry.used, reverse=True)
    old, abandoned = now - timedelta(days=min_age_days), now - timedelta(days=ABANDONED_DAYS)
    releases = {entry.id for entry in whole[keep:] if entry.used <= old} - protected
    unfinished = {entry.id for entry in found if not entry.whole and entry.used <= abandoned} | (begun - releases)
    if not dry_run:
        buried = tombstones.bury(storage, releases | unfinished)
        releases, unfinished = releases & buried, unfinished & buried
    else:
        unfinished -= protected
    return Pruned(
        releases=sorted(releases),
        unfinished=sorted(unfinished),
        refusals=_prune_refusals(storage, keep, old, dry_run),
        temporary=_prune_temporary(storage, abandoned, dry_run),
        bytes=sum(entry.bytes for entry in found if entry.id in releases | unfinished),
        kept=len({entry.id for entry in whole} - releases - unfinished),
        dry_run=dry_run,
    )


def _look(storage: Storage, id: str, last_live: datetime | None) -> _Found | None:
    with storage.snapshot(f"releases/{id}") as snapshot:
        objects = snapshot.objects
    if not objects:
        return None
    times = [object.modified for object in objects.values()] + ([last_live] if last_live else [])
    whole = MARKERS["releases"] in objects
    return _Found(id, whole, max(times), sum(object.bytes for object in objects.values()))


def _prune_refusals(storage: Storage, keep: int, old: datetime, dry_run: bool) -> int:
    names = sorted(filter(_is_entry, storage.files(REFUSED)), reverse=True)[keep:]  # they begin with their time
    paths = [path for name in names if _older(storage, path := f"{REFUSED}/{name}", old)]
    return _delete(storage, paths, dry_run)


def _prune_temporary(storage: Storage, abandoned: datetime, dry_run: bool) -> int:
    folders = ("releases", REFUSED, tombstones.FOLDER)
    names = [(folder, name) for folder in folders for name in storage.files(folder)]
    paths = [f"{folder}/{name}" for folder, name in names if name.startswith(".") and name.endswith(".tmp")]
    return _delete(storage, [path for path in paths if _older(storage, path, abandoned)], dry_run)


def _older(storage: Storage, path: str, time: datetime) -> bool:
    try:
        return storage.modified(path) <= time
    except FileNotFoundError:
        return False


def _delete(storage: Storage, paths: list[str], dry_run: bool) -> int:
    for path in paths if not dry_run else ():
        storage.delete(path)
    return len(paths)


def _is_entry(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")
