"""Releases: immutable folders of what passed its check, and CURRENT.json, the one mutable object, naming the live one.

releases/<id>/text_searcher.tflite, image_searcher.tflite, report.json, release.json
releases/CURRENT.json
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from searchforge import progress
from searchforge.errors import ConflictError, GateError, UsageError
from searchforge.hashing import content_id, sha256_bytes, sha256_file
from searchforge.workspace import MARKERS, Workspace

PRODUCTION = "production"
CURRENT = "releases/CURRENT.json"


@dataclass(frozen=True)
class Release:
    """One published release.

    Attributes:
      created: UTC time of publication, ISO 8601.
      files: size in bytes and SHA-256 by file name.
      figures: what the check measured: images, recall, retrieval quality, latency, bytes an image.
      provenance: ids of the encoder, embeddings, searcher and check it was made from.
      live: whether CURRENT.json names it.
    """

    id: str
    created: str
    fingerprint: str
    files: dict[str, dict[str, Any]]
    figures: dict[str, Any]
    provenance: dict[str, str]
    live: bool = False


def pointer(channel: str) -> str:
    """Path of the object that names a channel's live release."""
    return CURRENT if channel == PRODUCTION else f"releases/CURRENT.{channel}.json"


def publish(
    workspace: Workspace,
    target: Workspace,
    check: str,
    *,
    channel: str = PRODUCTION,
    revive: bool = True,
    fence: int | None = None,
) -> Release:
    """Copies a checked searcher into the target's releases and makes it the live one.

    Args:
      workspace: holds the check and the searcher.
      target: where apps download from; may be the same workspace.
      check: id of a passed check.
      revive: whether a release that was rolled back may become live again; a schedule must not undo a rollback.

    Raises:
      GateError: the check did not pass, or the searcher's bytes are not the ones that were checked.
      ConflictError: somebody else published at the same time; the release is there, but not live.
    """
    report = workspace.marker("checks", check)
    if not report["passed"]:
        failed = ", ".join(gate["name"] for gate in report["gates"] if not gate["passed"])
        raise GateError(f"check {check} did not pass ({failed}); only a passed searcher is published")
    searcher = workspace.local("searchers", report["searcher"])
    for name, checked in report["files"].items():
        found = sha256_file(searcher / name) if (searcher / name).is_file() else "no file"
        if found != checked["sha256"]:
            raise GateError(
                f"{name} of searcher {report['searcher']} has SHA-256 {found}, but {checked['sha256']} was checked; "
                "check the searcher again"
            )
    content = {
        "fingerprint": report["fingerprint"],
        "files": report["files"],
        "provenance": {**report["provenance"], "check": check},
    }
    id = content_id(content)  # not of the figures: times differ from run to run
    if not target.committed("releases", id):
        with target.create("releases", id) as staging:
            for name in report["files"]:
                shutil.copyfile(searcher / name, staging.path / name)
                if sha256_file(staging.path / name) != report["files"][name]["sha256"]:
                    raise GateError(f"{name} changed while it was copied; publish again")
            shutil.copy(workspace.local("checks", check) / MARKERS["checks"], staging.path)
            created = datetime.now(timezone.utc).isoformat(timespec="microseconds")
            staging.commit({"version": 1, "id": id, "created": created, **content, "figures": report["figures"]})
    if not revive and id in withdrawn(target, channel):
        progress.say(f"release {id} was rolled back, so it stays withdrawn; `searchforge publish` makes it live again")
        return _read(target, id, live=False)
    _make_live(target, id, channel=channel, fence=fence)
    return _read(target, id, live=True)


def rollback(target: Workspace, to: str | None = None) -> Release:
    """Makes an earlier release live: `to`, or the one published before the live one.

    Raises:
      UsageError: there is no such release, or none before the live one.
      GateError: a file of that release is damaged.
    """
    releases = list_releases(target)
    live = next((index for index, release in enumerate(releases) if release.live), None)
    if to is None:
        if live is None or live + 1 >= len(releases):
            raise UsageError(f"{target.root} has no release before the live one; `searchforge releases` lists them")
        to = releases[live + 1].id
    release = _read(target, to, live=True)
    for name, expected in release.files.items():
        path = f"releases/{to}/{name}"
        if not target.storage.exists(path) or sha256_bytes(target.storage.read(path)) != expected["sha256"]:
            raise GateError(f"{name} of release {to} is damaged; choose another release")
    _make_live(target, to, withdrawn=live_release(target))
    return release


def list_releases(target: Workspace) -> list[Release]:
    """Returns all releases, the most recent first."""
    live = live_release(target)
    releases = [_read(target, id, live=id == live) for id in target.ids("releases")]
    return sorted(releases, key=lambda release: release.created, reverse=True)


def live_release(target: Workspace, channel: str = PRODUCTION) -> str | None:
    """Returns the id that CURRENT.json names, None before the first release."""
    release: str | None = _current(target, channel).get("release")
    return release


def withdrawn(target: Workspace, channel: str = PRODUCTION) -> frozenset[str]:
    """Ids of the releases that were rolled back: only a person makes them live again."""
    return frozenset(_current(target, channel).get("withdrawn", []))


def known_fence(target: Workspace, channel: str = PRODUCTION) -> int:
    """The greatest fence that a channel has seen."""
    return int(_current(target, channel).get("fence") or 0)


def raise_fence(target: Workspace, channel: str, fence: int) -> None:
    """Makes a channel refuse publishers with a smaller fence."""
    data, version = target.storage.read_version(pointer(channel))
    current = json.loads(data) if data else {"version": 1, "release": None}
    _require_fence(current, fence)
    target.storage.replace(pointer(channel), json.dumps({**current, "fence": fence}).encode(), version)


def _require_fence(current: dict[str, Any], fence: int | None) -> None:
    if fence is not None and fence < (current.get("fence") or 0):
        raise ConflictError(f"a later run has taken over (fence {current['fence']}, ours {fence})")


def find_release(target: Workspace, id: str | None = None, channel: str = PRODUCTION) -> tuple[Release, Path]:
    """Returns a release (the live one by default) and a local folder with its files.

    Raises:
      UsageError: there is no such release, or nothing was published yet.
    """
    live = live_release(target, channel)
    id = id or live
    if id is None:
        raise UsageError(f"{target.root} has no live release; publish one with `searchforge run` or `publish`")
    return _read(target, id, live=id == live), target.local("releases", id)


def _current(target: Workspace, channel: str) -> dict[str, Any]:
    data, _ = target.storage.read_version(pointer(channel))
    content: dict[str, Any] = json.loads(data) if data else {}
    return content


def _make_live(
    target: Workspace, id: str, withdrawn: str | None = None, channel: str = PRODUCTION, fence: int | None = None
) -> None:
    """Names the live release; `withdrawn` joins the releases that only a person makes live again."""
    data, version = target.storage.read_version(pointer(channel))
    current = json.loads(data) if data else {}
    _require_fence(current, fence)
    if current.get("release") == id:
        progress.say(f"release {id} is live already")
        return
    rolled_back = sorted({*current.get("withdrawn", []), withdrawn} - {None, id})
    updated = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"version": 1, "release": id, "withdrawn": rolled_back, "updated": updated, "fence": current.get("fence")}
    content = json.dumps(entry, indent=2).encode()
    try:
        target.storage.replace(pointer(channel), content, version)
    except ConflictError as error:
        raise ConflictError(f"release {id} is stored but not live: {error}") from None


def _read(target: Workspace, id: str, live: bool) -> Release:
    marker = target.marker("releases", id)
    return Release(**{key: value for key, value in marker.items() if key != "version"}, live=live)
