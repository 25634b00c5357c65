"""Releases: immutable folders of what passed its check, shared by all channels.

What is live in a channel is decided in infra.releases.channels.

releases/<id>/text_searcher.tflite, image_searcher.tflite, report.json, report.html, release.json
refused/<time>-<check>.json      what was not published, and why
pruning/<id>.json                a release that is being deleted; see infra.releases.tombstones

A release goes live by one write of its channel's pointer, at the version that was read before anything was decided.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from infra.releases import channels, tombstones
from infra.releases.channels import PRODUCTION, STAGING, PointerFile, Seen
from searchforge.artifacts.workspace import MARKERS, Workspace
from searchforge.config import Config
from searchforge.console import progress
from searchforge.errors import ConflictError, GateError, JobError, SearchforgeError, UsageError
from searchforge.hashing import content_id, sha256_file

MINIMUM_TASK_LIBRARY = "0.4.4"
"""Version of the TFLite Task Library that a check opens the files with."""

REPORT_PAGE = "report.html"
"""The check's report as a page, if the check has one."""

REFUSED = "refused"

_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Release:
    """One published release.

    Attributes:
      created: UTC time of publication, ISO 8601, by the storage's clock.
      files: size in bytes and SHA-256 by file name; apps download these.
      documents: the same of files for people, which no pointer names: the check's report as a page.
      figures: what the check measured: images, recall, retrieval quality, latency, bytes an image.
      provenance: ids of the encoder, embeddings, searcher and check it was made from.
      reason: why it was published.
      gates: that it passed, and what was found.
      channels: those whose pointer names it, of the channels that were looked at.
      damaged: what is wrong with it; the other attributes are then empty.
    """

    id: str
    created: str
    fingerprint: str
    files: dict[str, dict[str, Any]]
    figures: dict[str, Any]
    provenance: dict[str, str]
    reason: str = ""
    gates: dict[str, str] = field(default_factory=dict)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    damaged: str = ""

    @property
    def live(self) -> bool:
        """Whether a channel names it."""
        return bool(self.channels)

    @property
    def bytes(self) -> int:
        """Size of the files that apps download."""
        return sum(file["bytes"] for file in self.files.values())

    @property
    def listed(self) -> dict[str, dict[str, Any]]:
        """Size in bytes and SHA-256 of every file and document."""
        return {**self.files, **self.documents}


@dataclass(frozen=True)
class Refusal:
    """An attempt to publish that was refused.

    Attributes:
      time: UTC, ISO 8601, by the storage's clock.
      release: id under which it is stored; empty where it did not come so far.
      reason: why, for people.
      gates: that failed, and by how much.
    """

    time: str
    check: str
    channel: str
    reason: str
    release: str = ""
    gates: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What was published and what was not, each the most recent first."""

    releases: list[Release]
    refused: list[Refusal]


def open_target(config: Config) -> Workspace:
    """Returns where releases are published: `releases` of the configuration, by default the workspace."""
    return Workspace(config.releases or config.workspace)


def publish(
    workspace: Workspace,
    target: Workspace,
    check: str,
    *,
    channel: str = PRODUCTION,
    revive: bool = True,
    fence: int | None = None,
    seen: Seen | None = None,
) -> Release:
    """Copies a checked searcher into the target's releases and makes it the live one of a channel.

    Args:
      workspace: holds the check and the searcher.
      target: where apps download from; may be the same workspace.
      check: id of a passed check.
      revive: whether a release that was rolled back may become live again; a schedule must not undo a rollback.
      fence: token of the publisher's lease; one that is smaller than the pointer's is refused.
      seen: the pointer as it was when it was decided to publish; by default it is read now.

    Raises:
      GateError: the check did not pass, or the searcher's bytes are not the ones that were checked.
      ConflictError: another release went live meanwhile, or the fence is old; this one may be stored, but is not live.
    """
    report = workspace.marker("checks", check)
    id = ""
    try:
        seen = seen or channels.read(target.storage, channel)
        channels.require_fence(seen.pointer, fence)
        require_passed(report)
        searcher = _require_checked_bytes(workspace, report)
        content = {
            "fingerprint": report["fingerprint"],
            "files": report["files"],
            "provenance": {**report["provenance"], "check": check},
        }
        id = content_id(content)  # not of the figures: times differ from run to run
        _store(workspace, target, id, searcher, report, content)
        release = read_release(target, id)
        if not revive and id in seen.pointer.withdrawn:
            progress.say(
                f"release {id} was rolled back, so it stays withdrawn; `searchforge publish` makes it live again"
            )
            return release
        _make_live(target, release, seen, fence)
    except (GateError, ConflictError) as error:
        _record(target, Refusal("", check, channel, str(error), id, _failed(report), report["figures"]))
        raise
    return dataclasses.replace(release, channels=(channel,))


def require_passed(report: Mapping[str, Any]) -> None:
    """Raises GateError, which names every failed gate and by how much, unless a check passed."""
    failed = _failed(report)
    if failed or not report["passed"]:
        lines = "\n".join(f"  {name}: {detail}" for name, detail in failed.items())
        raise GateError(f"the searcher did not pass its check {report['id']}; nothing is published:\n{lines}")


def rollback(target: Workspace, to: str | None = None, channel: str = PRODUCTION, fence: int | None = None) -> Release:
    """Makes an earlier release live: `to`, or the one that was live before. The one that is live is withdrawn.

    Raises:
      UsageError: there is no such release, or none before the live one.
      GateError: a file of that release is damaged.
      ConflictError: another release went live meanwhile.
    """
    seen = channels.read(target.storage, channel)
    if to is None:
        to = seen.pointer.previous
        if to is None:
            raise UsageError(
                f"{target.root} has no release before the live one of channel {channel}; `searchforge releases` lists "
                "them all"
            )
        if not target.committed("releases", to):
            there = ", ".join(target.ids("releases"))
            raise UsageError(f"release {to}, which was live before, was pruned; choose one with --to: {there}")
    release = read_release(target, to)
    _require_intact(target, release)
    _make_live(target, release, seen, fence, withdraw=seen.pointer.release)
    return dataclasses.replace(release, channels=(channel,))


def promote(
    target: Workspace, source: str = STAGING, to: str = PRODUCTION, release: str | None = None, fence: int | None = None
) -> Release:
    """Makes the live release of one channel, or `release`, live in another one too.

    Raises:
      UsageError: there is no such release, or nothing is live in `source`.
      GateError: a file of it is damaged.
      ConflictError: another release went live meanwhile.
    """
    if source == to:
        raise UsageError(f"a release is promoted from one channel to another, not from {source} to {to}")
    seen = channels.read(target.storage, to)
    id = release or live_release(target, source)
    if id is None:
        raise UsageError(f"channel {source} of {target.root} has no live release; publish one with --channel {source}")
    found = read_release(target, id)
    _require_intact(target, found)
    _make_live(target, found, seen, fence)
    return dataclasses.replace(found, channels=(to,))


def raise_fence(target: Workspace, channel: str, fence: int) -> None:
    """Refuses every publisher to a channel whose fencing token is smaller, from now on.

    Raises:
      ConflictError: a greater token is there already.
    """
    channels.raise_fence(target.storage, channel, fence)


def list_releases(target: Workspace) -> list[Release]:
    """Returns all releases, the most recent first; a damaged one is among them, and says so."""
    live: dict[str, list[str]] = {}
    for channel in channels.channels(target.storage):
        if id := live_release(target, channel):
            live.setdefault(id, []).append(channel)
    found = []
    for id in {*target.ids("releases"), *live}:
        try:
            release = read_release(target, id)
        except (JobError, UsageError) as error:
            if isinstance(error, UsageError) and id not in live:
                continue  # pruned since it was listed
            release = Release(id, "", "", {}, {}, {}, damaged=str(error))
        found.append(dataclasses.replace(release, channels=tuple(live.get(id, ()))))
    return sorted(found, key=lambda release: (release.created, release.id), reverse=True)


def list_refusals(target: Workspace) -> list[Refusal]:
    """Returns what was not published, the most recent first; a damaged entry is said and left out."""
    found = []
    for name in target.storage.files(REFUSED):
        if name.startswith(".") or not name.endswith(".json"):
            continue
        try:
            found.append(TypeAdapter(Refusal).validate_json(target.storage.read(f"{REFUSED}/{name}")))
        except FileNotFoundError:
            continue
        except ValidationError as error:
            progress.say(f"{target.root}/{REFUSED}/{name} is damaged and left out: {error.errors()[0]['msg']}")
    return sorted(found, key=lambda refusal: refusal.time, reverse=True)


def live_release(target: Workspace, channel: str = PRODUCTION) -> str | None:
    """Returns the id that a channel's pointer names, None before the first release.

    Raises:
      JobError: the pointer is damaged.
    """
    return channels.read(target.storage, channel).pointer.release


def find_release(target: Workspace, id: str | None = None, channel: str = PRODUCTION) -> tuple[Release, Path]:
    """Returns a release (the live one of the channel by default) and a local folder with its files.

    Raises:
      UsageError: there is no such release, or nothing was published yet.
      JobError: it is damaged.
    """
    live = live_release(target, channel)
    id = id or live
    if id is None:
        raise UsageError(
            f"{target.root} has no live release in channel {channel}; publish one with `searchforge run` or `publish`"
        )
    release = read_release(target, id)
    return dataclasses.replace(release, channels=(channel,) if id == live else ()), target.local("releases", id)


def read_release(target: Workspace, id: str) -> Release:
    """Returns a release, without looking at what is live.

    Raises:
      UsageError: there is no such release.
      JobError: its release.json is damaged.
    """
    marker = target.marker("releases", id)
    try:
        release = TypeAdapter(Release).validate_python(marker)
    except ValidationError as error:
        fault = error.errors()[0]
        raise JobError(
            f"{_marker_path(target, id)} is damaged ({'.'.join(map(str, fault['loc']))}: {fault['msg']}); publish the "
            "release again, or choose another one"
        ) from None
    if release.id != id:
        raise JobError(f"{_marker_path(target, id)} is damaged: it is that of release {release.id}")
    return release


def require_whole(target: Workspace, id: str) -> None:
    """Raises ConflictError unless a release has all its files and nobody is deleting it."""
    if target.storage.exists(tombstones.path_of(id)):
        raise ConflictError(
            f"release {id} is being pruned; run `searchforge prune` to finish that, and publish or choose again"
        )
    faults = _faults(target, id)
    if faults:
        raise ConflictError(f"release {id} is not whole any more ({faults[0]}); publish it again")


def _faults(target: Workspace, id: str) -> list[str]:
    """What is missing of a release, or has another size than it should."""
    with target.storage.snapshot(f"releases/{id}") as snapshot:
        there = snapshot.objects
    if MARKERS["releases"] not in there:
        return [f"no {MARKERS['releases']}"]
    sizes = {name: object.bytes for name, object in there.items()}
    return [
        f"{name} has {sizes.get(name, 'no')} bytes, expected {file['bytes']}"
        for name, file in read_release(target, id).listed.items()
        if sizes.get(name) != file["bytes"]
    ]


def _require_checked_bytes(workspace: Workspace, report: Mapping[str, Any]) -> Path:
    """Returns the folder of the searcher whose files are the checked ones, else raises GateError."""
    searcher = workspace.local("searchers", report["searcher"])
    for name, checked in report["files"].items():
        found = sha256_file(searcher / name) if (searcher / name).is_file() else "no file"
        if found != checked["sha256"]:
            raise GateError(
                f"{name} of searcher {report['searcher']} has SHA-256 {found}, but {checked['sha256']} was checked; "
                "check the searcher again"
            )
    return searcher


def _store(
    workspace: Workspace, target: Workspace, id: str, searcher: Path, report: Mapping[str, Any], content: dict[str, Any]
) -> None:
    """Commits the release's files, unless they are there and whole."""
    if target.storage.exists(tombstones.path_of(id)):
        tombstones.bury(target.storage, [id])  # what a deletion that died may have left is no base to build on
    if target.committed("releases", id):
        with contextlib.suppress(JobError):  # a damaged release is stored again
            if not _faults(target, id):
                return
        target.storage.delete(f"releases/{id}/{MARKERS['releases']}")
    with target.create("releases", id) as staging:
        for name in report["files"]:
            shutil.copyfile(searcher / name, staging.path / name)
            if sha256_file(staging.path / name) != report["files"][name]["sha256"]:
                raise GateError(f"{name} changed while it was copied; publish again")
        check = workspace.local("checks", report["id"])
        shutil.copy(check / MARKERS["checks"], staging.path)
        documents = {}
        if (check / REPORT_PAGE).is_file():
            page = Path(shutil.copy(check / REPORT_PAGE, staging.path))
            documents[REPORT_PAGE] = {"bytes": page.stat().st_size, "sha256": sha256_file(page)}
        staging.commit(
            {
                "version": 1,
                "id": id,
                "created": target.storage.now().isoformat(timespec="microseconds"),
                **content,
                "figures": report["figures"],
                "reason": f"check {report['id']} passed all its gates",
                "gates": {gate["name"]: gate.get("detail", "") for gate in report["gates"]},
                "documents": documents,
            }
        )


def _require_intact(target: Workspace, release: Release) -> None:
    """Raises GateError unless every file has the bytes that were published."""
    for name, expected in release.listed.items():
        path, digest, size = f"releases/{release.id}/{name}", hashlib.sha256(), 0
        try:
            while block := target.storage.read(path, size, _READ_BYTES):
                digest.update(block)
                size += len(block)
        except FileNotFoundError:
            raise GateError(f"{name} of release {release.id} is missing; choose another release") from None
        if digest.hexdigest() != expected["sha256"]:
            raise GateError(f"{name} of release {release.id} is damaged; choose another release")


def _make_live(
    target: Workspace, release: Release, seen: Seen, fence: int | None = None, withdraw: str | None = None
) -> None:
    """Names a release in a pointer, provided that nothing else went live since `seen`.

    A pointer may have been rewritten without a change of what is live (`channels.touch`, `raise_fence`): then the
    decision still holds, and is tried again on what the pointer is now.

    Args:
      withdraw: joins the releases that only a person makes live again.
    """
    storage, decided, channel = target.storage, seen.pointer, seen.pointer.channel
    now = storage.now()
    while True:
        if seen.pointer.release == release.id:
            channels.require_fence(seen.pointer, fence)
            progress.say(f"release {release.id} is live already in channel {channel}")
            return
        try:
            channels.require_fence(seen.pointer, fence)
            if not seen.pointer.says_the_same(decided):
                raise ConflictError(f"{seen.pointer.release} went live in channel {channel} meanwhile; decide anew")
        except ConflictError as error:
            raise ConflictError(f"release {release.id} is stored but not live: {error}") from None
        if seen.exists:
            require_whole(target, release.id)  # after the pointer was read: infra.releases.tombstones says why
        changes = _pointer_of(release, seen, withdraw, now) if seen.exists else {}
        with contextlib.suppress(ConflictError):
            channels.write(storage, seen, now, **changes)
            if seen.exists:
                return
        seen = channels.read(storage, channel)


def _pointer_of(release: Release, seen: Seen, withdraw: str | None, now: datetime) -> dict[str, Any]:
    """What changes in a pointer when a release goes live."""
    withdrawn = [id for id in seen.pointer.withdrawn if id not in (withdraw, release.id)]
    withdrawn += [withdraw] if withdraw and withdraw != release.id else []
    return {
        **seen.pointer.succeeded_by(release.id, now, back=withdraw is not None),
        "withdrawn": tuple(withdrawn[-channels.WITHDRAWN :]),
        "files": {
            name: PointerFile(bytes=file["bytes"], sha256=file["sha256"], path=f"{release.id}/{name}")
            for name, file in release.files.items()
        },
        "encoder": release.provenance.get("encoder", ""),
        "fingerprint": release.fingerprint,
        "minimum_task_library": MINIMUM_TASK_LIBRARY,
        "images": release.figures.get("images"),
    }


def _failed(report: Mapping[str, Any]) -> dict[str, str]:
    return {gate["name"]: gate.get("detail", "") for gate in report["gates"] if not gate["passed"]}


def _record(target: Workspace, refusal: Refusal) -> None:
    """Writes down a refusal; that it cannot be written is said, and hides no other error."""
    try:
        now = target.storage.now()
        entry = dataclasses.asdict(dataclasses.replace(refusal, time=now.isoformat(timespec="microseconds")))
        path = f"{REFUSED}/{now:%Y%m%dT%H%M%S.%f}-{refusal.check}.json"
        target.storage.write(path, json.dumps(entry, indent=2, ensure_ascii=False).encode())
    except SearchforgeError as error:
        progress.say(f"that {refusal.check} was refused could not be written down: {error}")


def _marker_path(target: Workspace, id: str) -> str:
    return target.url("releases", id, MARKERS["releases"])
