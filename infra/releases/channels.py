"""Channels of releases: each has one pointer, the small file that an app looks at; it is the only thing that changes.

releases/CURRENT.json            of the channel `production`
releases/CURRENT.staging.json    of the channel `staging`, or of any other name

A pointer is replaced only at the version that was read before it was decided what to write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from searchforge.config import ChannelName
from searchforge.errors import ConflictError, JobError, UsageError
from searchforge.storage.base import Storage

PRODUCTION = "production"
STAGING = "staging"

HISTORY = 20
"""Earlier releases that a pointer remembers, and so steps that a rollback can go back."""

WITHDRAWN = 100
"""Releases that were rolled back, which a pointer remembers."""

_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_FOLDER = "releases"
_POINTER = re.compile(r"CURRENT(?:\.([a-z][a-z0-9-]{0,31}))?\.json")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class PointerFile(_Part):
    """A file of the live release.

    Attributes:
      bytes, sha256: of its content.
      path: relative to the pointer.
    """

    bytes: int = Field(ge=0)
    sha256: _Hex
    path: str


class Earlier(_Part):
    """A release that was live.

    Attributes:
      until: UTC time, ISO 8601.
    """

    release: str
    until: datetime


class Pointer(_Part):
    """What a channel's pointer says. docs/on-device.md describes it for apps.

    Attributes:
      serial: grows with every write.
      release: id of the live release; None: nothing is live yet.
      files: of the release, by name.
      encoder: id of the encoder bundle that the release was made with.
      fingerprint: of the embedding space.
      minimum_task_library: version of the TFLite Task Library that opens the files.
      images: in the index.
      history: releases that were live before, the latest first.
      withdrawn: releases that were rolled back, the latest last; only a person makes one of them live again.
      fence: the greatest fencing token that was seen; a publisher with a smaller one is refused.
      updated: UTC time of the write, by the storage's clock.
    """

    version: Literal[1] = 1
    channel: ChannelName = PRODUCTION
    serial: int = Field(default=0, ge=0)
    release: str | None = None
    files: dict[str, PointerFile] = {}
    encoder: str = ""
    fingerprint: str = ""
    minimum_task_library: str = ""
    images: int | None = None
    history: tuple[Earlier, ...] = ()
    withdrawn: tuple[str, ...] = ()
    fence: int = Field(default=0, ge=0)
    updated: datetime | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def previous(self) -> str | None:
        """Id of the release that was live before, which stays downloadable."""
        return self.history[0].release if self.history else None

    @property
    def protected(self) -> set[str]:
        """Releases that must not be deleted."""
        return {id for id in (self.release, self.previous) if id}

    def succeeded_by(self, release: str, now: datetime, back: bool) -> dict[str, Any]:
        """Returns `release` and the history for it; who goes `back` to an earlier one forgets what came after it."""
        earlier = [entry.release for entry in self.history]
        if back and release in earlier:
            return {"release": release, "history": self.history[earlier.index(release) + 1 :]}
        before = (Earlier(release=self.release, until=now),) if self.release else ()
        others = (entry for entry in self.history if entry.release != release)
        return {"release": release, "history": (*before, *others)[:HISTORY]}

    def says_the_same(self, other: Pointer) -> bool:
        """Whether a decision that was made on one of them holds for the other."""
        return (self.release, self.history, self.withdrawn) == (other.release, other.history, other.withdrawn)


@dataclass(frozen=True)
class Seen:
    """A pointer as it was read.

    Attributes:
      version: of the file, at which it may be replaced.
      exists: whether there is a file.
    """

    pointer: Pointer
    version: str
    exists: bool


def path_of(channel: str) -> str:
    """Where a channel's pointer is.

    Raises:
      UsageError: it is not a channel's name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", channel):
        raise UsageError(f"{channel!r} is not a channel; expected a small letter, then small letters, digits and '-'")
    return f"{_FOLDER}/CURRENT.json" if channel == PRODUCTION else f"{_FOLDER}/CURRENT.{channel}.json"


def read(storage: Storage, channel: str = PRODUCTION) -> Seen:
    """Reads a pointer; a channel that was never published to has an empty one.

    Raises:
      JobError: it is damaged.
    """
    path = path_of(channel)
    data, version = storage.read_version(path)
    if data is None:
        return Seen(Pointer(channel=channel), version, exists=False)
    try:
        return Seen(Pointer.model_validate_json(data), version, exists=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise JobError(
            f"{storage}/{path} is damaged ({place}: {fault['msg']}), so nobody knows what is live; restore it from a "
            "backup or an earlier generation, or delete it and make a release live with `searchforge rollback --to ID`"
        ) from None


def write(storage: Storage, seen: Seen, now: datetime, **changes: Any) -> None:
    """Replaces a pointer by the one that was read with `changes`.

    Raises:
      ConflictError: somebody else replaced it since.
    """
    update = {**changes, "serial": seen.pointer.serial + 1, "updated": now}
    data = seen.pointer.model_copy(update=update).model_dump_json(indent=2).encode()
    storage.replace(path_of(seen.pointer.channel), data, seen.version)


def raise_fence(storage: Storage, channel: str, fence: int) -> None:
    """Writes a fencing token into a pointer, so that a publisher with a smaller one is refused from now on.

    Raises:
      ConflictError: a greater token is there already.
    """
    now = storage.now()
    while True:
        seen = read(storage, channel)
        require_fence(seen.pointer, fence)
        if seen.exists and seen.pointer.fence == fence:
            return
        try:
            write(storage, seen, now, fence=fence)
        except ConflictError:
            continue
        return


def require_fence(pointer: Pointer, fence: int | None) -> None:
    """Raises ConflictError where a greater fencing token was seen."""
    if fence is not None and fence < pointer.fence:
        raise ConflictError(
            f"channel {pointer.channel} has seen fencing token {pointer.fence}, and {fence} is older: another run took "
            "over, and this one may change nothing any more"
        )


def touch(storage: Storage, channel: str, now: datetime) -> Pointer:
    """Rewrites a pointer as it is, so that whoever read it before must look again; returns what it says."""
    while True:
        seen = read(storage, channel)
        try:
            write(storage, seen, now)
        except ConflictError:
            continue
        return seen.pointer


def channels(storage: Storage) -> list[str]:
    """Names of the channels that have a pointer, sorted."""
    found = (_POINTER.fullmatch(name) for name in storage.files(_FOLDER))
    return sorted(match.group(1) or PRODUCTION for match in found if match)
