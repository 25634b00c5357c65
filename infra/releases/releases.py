"""Publishes, promotes, rolls back and lists releases: immutable folders of checked searchers, shared by all channels.

releases/<id>/                   text_searcher.tflite, image_searcher.tflite, report.json, report.html, release.json
refused/<time>-<check>.json      record of a refused publication
pruning/<id>.json                tombstone of a release that is being deleted; see infra.releases.tombstones

A release goes live by a single compare-and-swap of its channel's pointer; see infra.releases.channels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from infra.releases import channels, tombstones
from infra.releases.channels import PRODUCTION, STAGING, Pointer, PointerFile, VersionedPointer
from searchforge.artifacts.workspace import MARKERS, Workspace
from searchforge.config import Config
from searchforge.errors import ConflictError, GateError, JobError, SearchforgeError, UsageError
from searchforge.hashing import content_id, sha256_file
from searchforge.storage.base import list_records

logger = logging.getLogger(__name__)

MINIMUM_TASK_LIBRARY = "0.4.4"
"""Version of the TFLite Task Library with which a check opens the files."""

REPORT_PAGE = "report.html"
"""The check's report as a page; a check may lack it."""

REFUSED = "refused"

_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Release:
    """One published release.

    Attributes:
      created: UTC time of publication, ISO 8601, by the storage's clock.
      fingerprint: Fingerprint of the encoder's embedding space.
      files: Size in bytes and SHA-256 of each file that apps download, by file name.
      figures: Measurements of the check: images, recall, retrieval quality, latency, bytes per image.
      provenance: Ids of the encoder, embeddings, searcher and check that the release was made from.
      reason: Why it was published, as a sentence.
      gates: Result of each gate that it passed, by gate name.
      documents: Like `files`, for documents that apps do not need; pointers do not list them, so no app downloads them.
      rejected: Number of corpus items that are not in it because they could not be used, by reason.
      channels: Channels in which it is live, among those that were read.
      withdrawn: Channels in which it was rolled back and has not been live since, among those that were read.
      damaged: Description of the damage; the other attributes are then empty.
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
    rejected: dict[str, int] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    damaged: str = ""

    @property
    def live(self) -> bool:
        """Whether the release is live in any channel."""
        return bool(self.channels)

    @property
    def bytes(self) -> int:
        """Total size of the files that apps download."""
        return sum(file["bytes"] for file in self.files.values())

    @property
    def all_files(self) -> dict[str, dict[str, Any]]:
        """Size in bytes and SHA-256 of every file and document."""
        return {**self.files, **self.documents}


@dataclass(frozen=True)
class Refusal:
    """Record of a refused publication.

    Attributes:
      time: UTC time, ISO 8601, by the storage's clock.
      check: Id of the check.
      reason: Human-readable reason of the refusal.
      release: Id of the stored release; empty if none was stored.
      gates: Result of each gate that failed, by gate name.
      figures: Measurements of the check.
    """

    time: str
    check: str
    channel: str
    reason: str
    release: str = ""
    gates: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleaseListing:
    """All releases and all refused publications, each most recent first."""

    releases: list[Release]
    refused: list[Refusal]


def open_target(config: Config) -> Workspace:
    """Returns the workspace that releases are published to: `releases` in the configuration, by default `workspace`."""
    return Workspace(config.releases or config.workspace)


def publish(
    workspace: Workspace,
    target: Workspace,
    check: str,
    *,
    channel: str = PRODUCTION,
    revive: bool = True,
    fence: int | None = None,
    expected: VersionedPointer | None = None,
) -> Release:
    """Stores a checked searcher as a release and makes it live in a channel.

    Args:
      workspace: Workspace with the check and the searcher.
      target: Workspace that apps download from; may be the same one.
      check: Id of a passed check.
      revive: Whether a withdrawn release may go live again; scheduled runs must not undo a rollback.
      fence: Fencing token of the publisher's lease; refused if smaller than the pointer's.
      expected: Pointer on which the decision to publish was based; read now by default.

    Raises:
      GateError: The check did not pass, or the searcher's bytes are not the ones that were checked.
      ConflictError: Another release went live since `expected` was read, or the fencing token is stale; the release may
        be stored, but is not live.
    """
    report = workspace.marker("checks", check)
    id = ""
    try:
        expected = expected or channels.read(target.storage, channel)
        channels.require_fence(expected.pointer, fence)
        require_passed(report)
        searcher = _require_checked_bytes(workspace, report)
        content = {
            "fingerprint": report["fingerprint"],
            "files": report["files"],
            "provenance": {**report["provenance"], "check": check},
        }
        id = content_id(content)  # excludes figures and reports, which contain measured times
        _store(workspace, target, id, searcher, report, content)
        release = read_release(target, id)
        if not revive and id in expected.pointer.withdrawn:
            logger.info(f"release {id} was rolled back and stays withdrawn; `searchforge publish` makes it live again")
            return release
        _make_live(target, release, expected, fence)
    except (GateError, ConflictError) as error:
        _record_refusal(target, Refusal("", check, channel, str(error), id, _failed_gates(report), report["figures"]))
        raise
    return dataclasses.replace(release, channels=(channel,))


def require_passed(report: Mapping[str, Any]) -> None:
    """Raises GateError, which lists the failed gates with their results, unless a check passed."""
    failed = _failed_gates(report)
    if failed or not report["passed"]:
        lines = "\n".join(f"  {name}: {detail}" for name, detail in failed.items())
        raise GateError(f"the searcher did not pass its check {report['id']}; nothing is published:\n{lines}")


def rollback(target: Workspace, to: str | None = None, channel: str = PRODUCTION, fence: int | None = None) -> Release:
    """Makes an earlier release live and withdraws the current one.

    Args:
      to: Id of the release; by default the one that was live before.

    Raises:
      UsageError: There is no such release, or no earlier one.
      GateError: A file of that release is damaged.
      ConflictError: Another release went live at the same time.
    """
    current = channels.read(target.storage, channel)
    if to is None:
        to = current.pointer.previous
        if to is None:
            raise UsageError(
                f"{target.root} has no earlier release in channel {channel}; `searchforge releases` lists all releases"
            )
        if not target.committed("releases", to):
            available = ", ".join(target.ids("releases"))
            raise UsageError(f"release {to}, which was live before, was pruned; choose one with --to: {available}")
    release = read_release(target, to)
    _require_intact(target, release)
    _make_live(target, release, current, fence, withdraw=current.pointer.release)
    return dataclasses.replace(release, channels=(channel,))


def promote(
    target: Workspace, source: str = STAGING, to: str = PRODUCTION, release: str | None = None, fence: int | None = None
) -> Release:
    """Makes a release live in channel `to` as well.

    Args:
      source: Channel whose live release is promoted, unless `release` is given.
      release: Id of the release to promote.

    Raises:
      UsageError: There is no such release, or `source` has no live release.
      GateError: A file of the release is damaged.
      ConflictError: Another release went live in `to` at the same time.
    """
    if source == to:
        raise UsageError(f"a release is promoted from one channel to another, not from {source} to {to}")
    current = channels.read(target.storage, to)
    id = release or live_release(target, source)
    if id is None:
        raise UsageError(f"channel {source} of {target.root} has no live release; publish one with --channel {source}")
    found = read_release(target, id)
    _require_intact(target, found)
    _make_live(target, found, current, fence)
    return dataclasses.replace(found, channels=(to,))


def list_releases(target: Workspace) -> list[Release]:
    """Returns all releases, most recent first, including damaged ones (see Release.damaged)."""
    live: dict[str, list[str]] = {}
    withdrawn: dict[str, list[str]] = {}
    for channel in channels.channels(target.storage):
        pointer = channels.read(target.storage, channel).pointer
        if pointer.release:
            live.setdefault(pointer.release, []).append(channel)
        for id in pointer.withdrawn:
            withdrawn.setdefault(id, []).append(channel)
    found = []
    for id in {*target.ids("releases"), *live}:
        try:
            release = read_release(target, id)
        except (JobError, UsageError) as error:
            if isinstance(error, UsageError) and id not in live:
                continue  # pruned since the listing
            release = Release(id, "", "", {}, {}, {}, damaged=str(error))
        found.append(
            dataclasses.replace(release, channels=tuple(live.get(id, ())), withdrawn=tuple(withdrawn.get(id, ())))
        )
    return sorted(found, key=lambda release: (release.created, release.id), reverse=True)


def list_refusals(target: Workspace) -> list[Refusal]:
    """Returns the records of refused publications, most recent first; damaged ones are logged and skipped."""
    found = []
    for name in list_records(target.storage, REFUSED):
        try:
            found.append(TypeAdapter(Refusal).validate_json(target.storage.read(f"{REFUSED}/{name}")))
        except FileNotFoundError:
            continue
        except ValidationError as error:
            logger.info(f"{target.root}/{REFUSED}/{name} is damaged and is skipped: {error.errors()[0]['msg']}")
    return sorted(found, key=lambda refusal: refusal.time, reverse=True)


def live_release(target: Workspace, channel: str = PRODUCTION) -> str | None:
    """Returns the id of a channel's live release, or None before the first one.

    Raises:
      JobError: The pointer is damaged.
    """
    return channels.read(target.storage, channel).pointer.release


def find_release(target: Workspace, id: str | None = None, channel: str = PRODUCTION) -> tuple[Release, Path]:
    """Returns a release and a local folder with its files.

    Args:
      id: Id of the release; by default the channel's live one.

    Raises:
      UsageError: There is no such release, or the channel has no live one.
      JobError: The release or the pointer is damaged.
    """
    live = live_release(target, channel)
    id = id or live
    if id is None:
        raise UsageError(
            f"{target.root} has no live release in channel {channel}; "
            "publish one with `searchforge reindex` or `publish`"
        )
    release = read_release(target, id)
    return dataclasses.replace(release, channels=(channel,) if id == live else ()), target.local("releases", id)


def read_release(target: Workspace, id: str) -> Release:
    """Returns a release without reading any pointer; `channels` is empty.

    Raises:
      UsageError: There is no such release.
      JobError: Its release.json is damaged.
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
        raise JobError(f"{_marker_path(target, id)} is damaged: it belongs to release {release.id}")
    return release


def require_complete(target: Workspace, id: str) -> None:
    """Raises ConflictError unless a release has all its files, at their sizes, and no tombstone."""
    if target.storage.exists(tombstones.path_of(id)):
        raise ConflictError(
            f"release {id} is being pruned; run `searchforge prune` to finish, then publish it again or choose another"
        )
    faults = _faults(target, id)
    if faults:
        raise ConflictError(f"release {id} is no longer complete ({faults[0]}); publish it again")


def _faults(target: Workspace, id: str) -> list[str]:
    """Returns a description of each file that is missing or has the wrong size."""
    with target.storage.snapshot(f"releases/{id}") as snapshot:
        sizes = {name: object.bytes for name, object in snapshot.objects.items()}
    if MARKERS["releases"] not in sizes:
        return [f"no {MARKERS['releases']}"]
    return [
        f"{name} has {sizes.get(name, 'no')} bytes, expected {file['bytes']}"
        for name, file in read_release(target, id).all_files.items()
        if sizes.get(name) != file["bytes"]
    ]


def _require_checked_bytes(workspace: Workspace, report: Mapping[str, Any]) -> Path:
    """Returns the searcher's folder; raises GateError unless its files are the ones that were checked."""
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
    """Commits the release, unless it is already stored and complete."""
    if target.storage.exists(tombstones.path_of(id)):
        tombstones.delete_releases(target.storage, [id])  # finish a killed deletion before storing the files again
    if target.committed("releases", id):
        with contextlib.suppress(JobError):  # a damaged release is replaced
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
                "rejected": report["corpus"]["rejected_by_reason"],
                "reason": f"check {report['id']} passed all its gates",
                "gates": {gate["name"]: gate.get("detail", "") for gate in report["gates"]},
                "documents": documents,
            }
        )


def _require_intact(target: Workspace, release: Release) -> None:
    """Raises GateError unless every file has its published SHA-256."""
    for name, expected in release.all_files.items():
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
    target: Workspace,
    release: Release,
    expected: VersionedPointer,
    fence: int | None = None,
    withdraw: str | None = None,
) -> None:
    """Makes a release live, provided that no other one went live since `expected` was read.

    The pointer may have been rewritten without a change of releases (`channels.touch`, `channels.advance_fence`). The
    decision is then still valid, and the write is retried on the current pointer.

    Args:
      withdraw: Id of a release to add to the withdrawn ones.
    """
    storage, channel = target.storage, expected.pointer.channel
    now = storage.now()
    current = expected
    while True:
        if current.pointer.release == release.id:
            channels.require_fence(current.pointer, fence)
            logger.info(f"release {release.id} is already live in channel {channel}")
            return
        try:
            channels.require_fence(current.pointer, fence)
            if not current.pointer.has_same_releases(expected.pointer):
                raise ConflictError(
                    f"{current.pointer.release} went live in channel {channel} in the meantime; try again"
                )
        except ConflictError as error:
            raise ConflictError(f"release {release.id} is stored but not live: {error}") from None
        if current.exists:
            require_complete(target, release.id)  # after reading the pointer, see infra.releases.tombstones
        changes = _pointer_changes(release, current.pointer, withdraw, now) if current.exists else {}
        with contextlib.suppress(ConflictError):
            channels.write(storage, current, now, **changes)
            if current.exists:
                return
        current = channels.read(storage, channel)


def _pointer_changes(release: Release, pointer: Pointer, withdraw: str | None, now: datetime) -> dict[str, Any]:
    """Returns the fields of a pointer that change when a release goes live."""
    withdrawn = [id for id in pointer.withdrawn if id not in (withdraw, release.id)]
    withdrawn += [withdraw] if withdraw and withdraw != release.id else []
    encoder = release.provenance.get("encoder", "")
    replaced = pointer.encoder if withdraw else ""
    encoders = [id for id in pointer.withdrawn_encoders if id not in (replaced, encoder)]
    encoders += [replaced] if replaced and replaced != encoder else []
    return {
        **pointer.succession(release.id, now, rollback=withdraw is not None),
        "withdrawn": tuple(withdrawn[-channels.WITHDRAWN :]),
        "withdrawn_encoders": tuple(encoders[-channels.WITHDRAWN :]),
        "files": {
            name: PointerFile(bytes=file["bytes"], sha256=file["sha256"], path=f"{release.id}/{name}")
            for name, file in release.files.items()
        },
        "encoder": encoder,
        "fingerprint": release.fingerprint,
        "minimum_task_library": MINIMUM_TASK_LIBRARY,
        "images": release.figures.get("images"),
    }


def _failed_gates(report: Mapping[str, Any]) -> dict[str, str]:
    return {gate["name"]: gate.get("detail", "") for gate in report["gates"] if not gate["passed"]}


def _record_refusal(target: Workspace, refusal: Refusal) -> None:
    """Records a refusal; a failure to do so is logged, since the caller raises the refusal itself."""
    try:
        now = target.storage.now()
        entry = dataclasses.asdict(dataclasses.replace(refusal, time=now.isoformat(timespec="microseconds")))
        path = f"{REFUSED}/{now:%Y%m%dT%H%M%S.%f}-{refusal.check}.json"
        target.storage.write(path, json.dumps(entry, indent=2, ensure_ascii=False).encode())
    except SearchforgeError as error:
        logger.info(f"the refusal of check {refusal.check} could not be recorded: {error}")


def _marker_path(target: Workspace, id: str) -> str:
    return target.url("releases", id, MARKERS["releases"])
