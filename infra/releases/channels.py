"""Release channels: reads and replaces the pointers that name each channel's live release.

releases/CURRENT.json            pointer of the channel `production`
releases/CURRENT.staging.json    pointer of the channel `staging`; other channels follow the same pattern

Apps poll the pointer; releases themselves are immutable. A pointer is replaced by compare-and-swap: the write succeeds
only if the file still has the version that was read before the decision was made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from searchforge.config import CHANNEL_NAME, ChannelName
from searchforge.errors import ConflictError, JobError, UsageError
from searchforge.storage.base import Storage

PRODUCTION = "production"
STAGING = "staging"

HISTORY = 20
"""Number of earlier releases that a pointer lists, and so the maximum number of consecutive rollbacks."""

WITHDRAWN = 100
"""Number of withdrawn releases, and of withdrawn encoders, that a pointer lists."""

_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_FOLDER = "releases"
_POINTER = re.compile(rf"CURRENT(?:\.({CHANNEL_NAME}))?\.json")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class PointerFile(_Frozen):
    """A file of the live release.

    Attributes:
      bytes: Size of the file.
      sha256: SHA-256 of its content, in hexadecimal.
      path: Path relative to the pointer.
    """

    bytes: int = Field(ge=0)
    sha256: _Hex
    path: str


class Earlier(_Frozen):
    """A release that was live earlier.

    Attributes:
      until: UTC time at which another release replaced it.
    """

    release: str
    until: datetime


class Pointer(_Frozen):
    """Content of a channel's pointer. docs/on-device.md describes it for apps.

    Attributes:
      serial: Write counter; every write increments it.
      release: Id of the live release, None if nothing is live yet.
      files: Files of the live release that apps download, by name.
      encoder: Id of the encoder bundle that the release was built with.
      fingerprint: Fingerprint of the encoder's embedding space.
      minimum_task_library: Lowest version of the TFLite Task Library that opens the files.
      images: Number of images in the index.
      history: Releases that were live before, most recent first.
      withdrawn: Ids of releases that were rolled back, most recent last; scheduled runs never make them live again.
      withdrawn_encoders: Ids of encoders that a rollback replaced by another one, most recent last; scheduled runs do
        not use them until a release built with them is made live again.
      fence: Greatest fencing token seen so far; publishers with a smaller one are refused.
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
    withdrawn_encoders: tuple[str, ...] = ()
    fence: int = Field(default=0, ge=0)
    updated: datetime | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def previous(self) -> str | None:
        """Id of the release that was live before this one; it stays downloadable."""
        return self.history[0].release if self.history else None

    @property
    def protected(self) -> set[str]:
        """Ids of the releases that must not be deleted: the live one and its predecessor."""
        return {id for id in (self.release, self.previous) if id}

    def succession(self, release: str, now: datetime, *, rollback: bool) -> dict[str, Any]:
        """Returns the fields `release` and `history` after `release` went live.

        Args:
          rollback: Drop the history entries that are more recent than `release`.
        """
        earlier = [entry.release for entry in self.history]
        if rollback and release in earlier:
            return {"release": release, "history": self.history[earlier.index(release) + 1 :]}
        before = (Earlier(release=self.release, until=now),) if self.release else ()
        others = (entry for entry in self.history if entry.release != release)
        return {"release": release, "history": (*before, *others)[:HISTORY]}

    def has_same_releases(self, other: Pointer) -> bool:
        """Returns whether a decision based on one of the two pointers is valid for the other."""
        return (self.release, self.history, self.withdrawn) == (other.release, other.history, other.withdrawn)


@dataclass(frozen=True)
class VersionedPointer:
    """A pointer together with the version of its file, for compare-and-swap.

    Attributes:
      version: Version of the file, as the storage reports it.
      exists: Whether the file exists; if not, `pointer` is an empty one.
    """

    pointer: Pointer
    version: str
    exists: bool


def path_of(channel: str) -> str:
    """Returns the path of a channel's pointer.

    Raises:
      UsageError: The name is not a valid channel name.
    """
    if not re.fullmatch(CHANNEL_NAME, channel):
        raise UsageError(
            f"{channel!r} is not a valid channel name; expected a lowercase letter, then lowercase letters, "
            "digits or '-'"
        )
    return f"{_FOLDER}/CURRENT.json" if channel == PRODUCTION else f"{_FOLDER}/CURRENT.{channel}.json"


def read(storage: Storage, channel: str = PRODUCTION) -> VersionedPointer:
    """Reads a channel's pointer; a channel without one gets an empty pointer.

    Raises:
      JobError: The pointer is damaged.
    """
    path = path_of(channel)
    data, version = storage.read_version(path)
    if data is None:
        return VersionedPointer(Pointer(channel=channel), version, exists=False)
    try:
        return VersionedPointer(Pointer.model_validate_json(data), version, exists=True)
    except ValidationError as error:
        fault = error.errors()[0]
        location = ".".join(map(str, fault["loc"])) or "the file"
        raise JobError(
            f"{storage}/{path} is damaged ({location}: {fault['msg']}), so the live release is unknown; restore it "
            "from a backup or an earlier object generation, or delete it and run `searchforge rollback --to ID`"
        ) from None


def write(storage: Storage, expected: VersionedPointer, now: datetime, **changes: Any) -> None:
    """Replaces a pointer by a copy of `expected` with `changes`.

    Raises:
      ConflictError: The pointer no longer has the version of `expected`.
    """
    update = {**changes, "serial": expected.pointer.serial + 1, "updated": now}
    data = expected.pointer.model_copy(update=update).model_dump_json(indent=2).encode()
    storage.replace(path_of(expected.pointer.channel), data, expected.version)


def advance_fence(storage: Storage, channel: str, fence: int) -> None:
    """Stores a fencing token in a pointer; publishers with a smaller token are refused afterwards.

    Raises:
      ConflictError: The pointer already has a greater token.
    """
    now = storage.now()
    while True:
        current = read(storage, channel)
        require_fence(current.pointer, fence)
        if current.exists and current.pointer.fence == fence:
            return
        try:
            write(storage, current, now, fence=fence)
        except ConflictError:
            continue
        return


def require_fence(pointer: Pointer, fence: int | None) -> None:
    """Raises ConflictError if the pointer has a greater fencing token than `fence`."""
    if fence is not None and fence < pointer.fence:
        raise ConflictError(
            f"channel {pointer.channel} has fencing token {pointer.fence}, but this run holds the older token {fence}: "
            "another run took over the lease, so this one can no longer publish"
        )


def touch(storage: Storage, channel: str, now: datetime) -> Pointer:
    """Rewrites a pointer unchanged, which invalidates every version read before; returns its content."""
    while True:
        current = read(storage, channel)
        try:
            write(storage, current, now)
        except ConflictError:
            continue
        return current.pointer


def channels(storage: Storage) -> list[str]:
    """Returns the names of the channels that have a pointer, sorted."""
    found = (_POINTER.fullmatch(name) for name in storage.list_files(_FOLDER))
    return sorted(match.group(1) or PRODUCTION for match in found if match)
