"""Deletes releases while others may publish, roll back, promote or delete at the same time, and may die at any moment.

Whoever makes a release live (1) reads the pointer, (2) sees that the release is whole and has no tombstone, and
(3) replaces the pointer at the version that was read. Whoever deletes it
  1. writes a tombstone, `pruning/<id>.json`, with a token of its own, over one that a dead or slower deleter left;
  2. lists the objects that there are now, at their versions;
  3. rewrites every pointer as it is, so that each step (3) whose step (1) came before fails and looks again; a release
     that a pointer names is spared;
  4. goes on if the tombstone is still its own, and deletes the listed objects at the listed versions, the release's
     marker first;
  5. removes the tombstone if it is still its own.
So nothing that is being deleted goes live between 3 and 5, and what is stored anew under the same id after 5 has other
versions than what a deleter that slept meanwhile would delete. A channel begins with an empty pointer: 3 finds it, or
whoever wrote it finds the tombstone.
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

_AT_ONCE = 100
"""Releases that are listed at once."""


def path_of(id: str) -> str:
    """Where the tombstone of a release is."""
    return f"{FOLDER}/{id}.json"


def bury(storage: Storage, ids: Iterable[str]) -> set[str]:
    """Deletes releases; returns those that were deleted, which a live one and its predecessor never are."""
    waiting, buried = sorted(ids), set()
    while waiting:
        buried |= _bury(storage, waiting[:_AT_ONCE])
        waiting = waiting[_AT_ONCE:]
    return buried


def _bury(storage: Storage, ids: list[str]) -> set[str]:
    token, buried = secrets.token_hex(8), set()
    with contextlib.ExitStack() as stack:
        marked = [id for id in ids if _mark(storage, id, token)]
        listed = {id: stack.enter_context(storage.snapshot(f"releases/{id}")) for id in marked}
        protected = _touch_all(storage)
        for id in marked:
            version = _own_version(storage, id, token)
            if version is None:
                continue  # another deleter took over
            if id not in protected:
                listed[id].delete(first=MARKERS["releases"])
                buried.add(id)
            storage.delete(path_of(id), version)
    return buried


def _mark(storage: Storage, id: str, token: str) -> bool:
    """Writes a tombstone; returns whether it is our own."""
    _, version = storage.read_version(path_of(id))
    try:
        storage.replace(path_of(id), json.dumps({"token": token}).encode(), version)
    except ConflictError:
        return False
    return True


def _own_version(storage: Storage, id: str, token: str) -> str | None:
    data, version = storage.read_version(path_of(id))
    return version if data is not None and token.encode() in data else None


def _touch_all(storage: Storage) -> set[str]:
    """Rewrites the pointers of all channels; returns what they protect."""
    now = storage.now()
    protected: set[str] = set()
    touched: set[str] = set()
    while fresh := set(channels.channels(storage)) - touched:
        for channel in sorted(fresh):
            protected |= channels.touch(storage, channel, now).protected
        touched |= fresh
    return protected
