"""Deletes releases safely while other processes publish, roll back, promote or delete, any of which may be killed.

A process that makes a release live (a) reads the pointer, (b) verifies that the release is complete and has no
tombstone, and (c) replaces the pointer at the version it read. A process that deletes a release
  1. writes a tombstone, `pruning/<id>.json`, with a random token, replacing that of a killed or slower process;
  2. lists the objects of the release at their versions;
  3. rewrites every pointer unchanged, so that any replacement (c) whose read (a) came earlier fails and is retried;
     releases that a pointer protects are spared;
  4. if the tombstone still has its token, deletes the listed objects at the listed versions, the marker first;
  5. removes the tombstone if it still has its token.
A release can therefore not go live between steps 3 and 5. Objects stored under the same id after step 5 have other
versions, so a deleter that was suspended in the meantime cannot remove them. A channel starts with an empty pointer:
either step 3 finds that pointer, or the process that creates it finds the tombstone.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterable

from infra.releases import channels
from searchforge.artifacts.workspace import MARKERS
from searchforge.errors import ConflictError
from searchforge.storage.base import Storage

FOLDER = "pruning"

_BATCH = 100
"""Maximum number of releases deleted together; their listings are held in memory."""


def path_of(id: str) -> str:
    """Returns the path of a release's tombstone."""
    return f"{FOLDER}/{id}.json"


def delete_releases(storage: Storage, ids: Iterable[str]) -> set[str]:
    """Deletes releases, except those that a pointer protects; returns the ids of the deleted ones."""
    remaining, deleted = sorted(ids), set()
    while remaining:
        deleted |= _delete_batch(storage, remaining[:_BATCH])
        remaining = remaining[_BATCH:]
    return deleted


def _delete_batch(storage: Storage, ids: list[str]) -> set[str]:
    token, deleted = secrets.token_hex(8), set()
    with contextlib.ExitStack() as stack:
        marked = [id for id in ids if _write_tombstone(storage, id, token)]
        snapshots = {id: stack.enter_context(storage.snapshot(f"releases/{id}")) for id in marked}
        protected = _touch_pointers(storage)
        for id in marked:
            version = _tombstone_version(storage, id, token)
            if version is None:
                continue  # another process took over the deletion
            if id not in protected:
                snapshots[id].delete(first=MARKERS["releases"])
                deleted.add(id)
            storage.delete(path_of(id), version)
    return deleted


def _write_tombstone(storage: Storage, id: str, token: str) -> bool:
    """Writes a tombstone; returns False if another process wrote one at the same time."""
    _, version = storage.read_version(path_of(id))
    try:
        storage.replace(path_of(id), json.dumps({"token": token}).encode(), version)
    except ConflictError:
        return False
    return True


def _tombstone_version(storage: Storage, id: str, token: str) -> str | None:
    """Returns the version of a tombstone, or None if it does not have this token."""
    data, version = storage.read_version(path_of(id))
    return version if data is not None and token.encode() in data else None


def _touch_pointers(storage: Storage) -> set[str]:
    """Rewrites the pointers of all channels; returns the ids of the releases that they protect."""
    now = storage.now()
    protected: set[str] = set()
    touched: set[str] = set()
    while untouched := set(channels.channels(storage)) - touched:
        for channel in sorted(untouched):
            protected |= channels.touch(storage, channel, now).protected
        touched |= untouched
    return protected
