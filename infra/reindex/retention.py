"""Retention: releases beyond `reindex.keep_releases`, and what only they were made from, are deleted.

What is needed is what a release that stays was made from, what the run itself made, and what these build on: an
embedding run refers to shards in the folders of earlier ones. Anything else goes once it has not been written to for
some time, unfinished artifacts among it. The committing file goes first, so that half a folder never counts as an
artifact, and a run that is killed here is finished by the next one. Encoders that no embedding run ever used stay:
somebody trained them by hand.
"""

from __future__ import annotations

import graphlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from infra.reindex import journal, lease
from infra.reindex.plan import MADE_FROM
from infra.releases.pruning import prune as prune_releases
from searchforge.artifacts.workspace import MARKERS, Kind, Workspace
from searchforge.captions.dataset import has_captions, image_folder
from searchforge.config import Config
from searchforge.errors import JobError
from searchforge.storage.base import Storage

logger = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("checks", "searchers", "encoders", "embeddings")
"""In the order of deletion: what is made of others goes before them, and an encoder before the runs that used it."""

MIN_AGE = timedelta(days=1)
"""What is younger may belong to a command that somebody runs at this moment."""

FEATURES_AGE = timedelta(days=30)
"""Features of frozen towers, which take long to compute, are kept so long after a training last used them."""


class Artifact(NamedTuple):
    """An artifact, or what there is of one."""

    kind: Kind
    id: str


def prune(
    config: Config, workspace: Workspace, target: Workspace, made: Mapping[Kind, str], now: datetime | None = None
) -> list[Artifact]:
    """Deletes what is not needed any more; the caller holds the lease.

    Args:
      workspace: holds the artifacts.
      target: holds the releases; may be the same workspace.
      made: ids of what the run made or found, by kind; they stay.
      now: the time that ages are counted to; by default that of the storage.

    Returns:
      What was deleted from the workspace.

    Raises:
      JobError: the storage cannot be used, or a committing file is damaged, so that it cannot be told what is needed.
    """
    settings = config.reindex
    if settings.keep_releases is None:
        return []
    prune_releases(target, settings.keep_releases, settings.keep_days, now=now)
    now = now or workspace.storage.now()
    limit = now - max(timedelta(days=settings.keep_days), MIN_AGE)
    there = [Artifact(kind, id) for kind in KINDS for id in workspace.all_ids(kind)]
    young = {artifact for artifact in there if _written(workspace.storage, f"{artifact.kind}/{artifact.id}") > limit}
    needed = _with_origins(workspace, [*_released(target), *(Artifact(*item) for item in made.items()), *young])
    going = _unneeded(workspace, there, needed)
    for artifact in going:
        with workspace.storage.snapshot(f"{artifact.kind}/{artifact.id}") as snapshot:
            snapshot.delete(first=MARKERS[artifact.kind])
    _tidy_runs(workspace, needed, limit)
    for folder in (journal.FOLDER, str(Path(lease.LEASE).parent)):
        _remove_unfinished_writes(workspace.storage, folder, limit)
    _prune_caches(config, workspace, needed, now, limit)
    if going:
        counts = (f"{sum(artifact.kind == kind for artifact in going)} {kind}" for kind in KINDS)
        logger.info(f"  deleted, since no release needs them: {', '.join(counts)}")
    return going


def _released(target: Workspace) -> Iterator[Artifact]:
    """Yields what the releases were made from, wherever that is."""
    for id in target.ids("releases"):
        provenance = target.marker("releases", id)["provenance"]
        yield from (Artifact(kind, provenance[key]) for key, kind in MADE_FROM.items() if key in provenance)


def _with_origins(workspace: Workspace, roots: Iterable[Artifact]) -> set[Artifact]:
    """Returns artifacts and all that they build on, whether they are in the workspace or not."""
    found: set[Artifact] = set()
    waiting = list(roots)
    while waiting:
        artifact = waiting.pop()
        if artifact not in found:
            found.add(artifact)
            waiting += _origins(workspace, artifact)
    return found


def _origins(workspace: Workspace, artifact: Artifact) -> Iterator[Artifact]:
    """Yields what an artifact was made from; nothing for one that is not committed."""
    if not workspace.committed(*artifact):
        return
    marker = workspace.marker(*artifact)
    try:
        if artifact.kind == "checks":
            yield Artifact("searchers", marker["searcher"])
        elif artifact.kind == "searchers":
            yield Artifact("encoders", marker["encoder"])
            for run in {marker["embeddings"], marker["training"]["embeddings"]}:
                yield Artifact("embeddings", run)
        elif artifact.kind == "embeddings":
            yield Artifact("encoders", marker["encoder"])
            for run in {shard["run"] for shard in marker["shards"] if shard["run"]}:
                yield Artifact("embeddings", run)
    except (KeyError, TypeError) as error:
        place = workspace.url(*artifact, MARKERS[artifact.kind])
        raise JobError(f"{place} does not say what it was made from ({error}); delete {artifact.id}") from None


def _unneeded(workspace: Workspace, there: Collection[Artifact], needed: Collection[Artifact]) -> list[Artifact]:
    """Returns what can go, in the order of deletion: also of embedding runs, those first that are built on others."""
    going = [artifact for artifact in there if artifact not in needed]
    origins = {artifact: set(_origins(workspace, artifact)) for artifact in going if artifact.kind == "embeddings"}
    bases_first = list(graphlib.TopologicalSorter(origins).static_order())
    going = [artifact for artifact in going if artifact not in origins]
    going += [artifact for artifact in reversed(bases_first) if artifact in origins]
    used = {
        workspace.marker(kind, id).get("encoder")
        for kind, id in going
        if kind == "embeddings" and workspace.committed(kind, id)
    }
    return [
        artifact
        for artifact in going
        if artifact.kind != "encoders" or artifact.id in used or not workspace.committed(*artifact)
    ]


def _tidy_runs(workspace: Workspace, needed: Iterable[Artifact], limit: datetime) -> None:
    """Deletes what embedding runs that were killed after their commit left: plans, reports of shards, partial files."""
    for kind, id in needed:
        if kind == "embeddings" and workspace.committed(kind, id):
            marker = workspace.marker(kind, id)
            own = {shard["name"] for shard in marker["shards"] if not shard["run"]}
            keep = {MARKERS[kind], "report.json", *marker["rejects"], *own}
            with workspace.storage.snapshot(f"{kind}/{id}") as snapshot:
                left = [name for name, found in snapshot.objects.items() if found.modified <= limit]
            for name in set(left) - keep:
                workspace.storage.delete(f"{kind}/{id}/{name}")


def _remove_unfinished_writes(storage: Storage, folder: str, limit: datetime) -> None:
    for name in storage.list_files(folder):
        if name.startswith(".") and name.endswith(".tmp") and storage.modified(f"{folder}/{name}") <= limit:
            storage.delete(f"{folder}/{name}")


def _prune_caches(
    config: Config, workspace: Workspace, needed: Collection[Artifact], now: datetime, limit: datetime
) -> None:
    """Deletes local copies of what is gone from a bucket, and of caches what is of no use any more, or old."""
    places = {storage.root: storage for storage in (workspace.storage, workspace.local_storage)}
    if len(places) == 2:  # a bucket and the copies of what is in it
        for kind in KINDS:
            for id in workspace.local_storage.list_folders(kind):
                if not workspace.committed(kind, id):
                    workspace.local_storage.delete_folder(f"{kind}/{id}")
    builds = [workspace.marker(*one) for one in needed if one.kind == "searchers" and workspace.committed(*one)]
    quantizers = {str(build.get("quantizer")) for build in builds}
    runs = {id for kind, id in needed if kind == "embeddings"}
    unpacked = image_folder(config).parent.name if has_captions(config.data) else ""
    for storage in places.values():
        for name in storage.list_folders("cache/parts"):
            if name not in quantizers:
                _delete_old(storage, f"cache/parts/{name}", limit)
        for name in storage.list_files("cache/folded"):
            if name.partition(".")[0].rpartition("-")[2] not in quantizers:
                _delete_old(storage, f"cache/folded/{name}", limit)
        for name in storage.list_folders("cache/captions"):
            if name != unpacked:
                _delete_old(storage, f"cache/captions/{name}", limit)
        for name in storage.list_files("cache/sources"):
            if name.partition(".")[0] not in runs:
                _delete_old(storage, f"cache/sources/{name}", limit)
        for name in storage.list_files("cache/queries"):
            _delete_old(storage, f"cache/queries/{name}", limit)
        for name in storage.list_folders("cache/training"):
            _delete_old(storage, f"cache/training/{name}", limit)
        for tower in storage.list_folders("cache/features"):
            for name in storage.list_files(f"cache/features/{tower}"):
                _delete_old(storage, f"cache/features/{tower}/{name}", now - FEATURES_AGE)


def _delete_old(storage: Storage, path: str, limit: datetime) -> None:
    """Deletes a file, or a folder, to which nothing was written since."""
    if _written(storage, path) <= limit:
        storage.delete_folder(path)
        storage.delete(path)


def _written(storage: Storage, path: str) -> datetime:
    """When something was last written to a folder, or a file."""
    with storage.snapshot(path) as snapshot:
        times = [found.modified for found in snapshot.objects.values()]
    try:
        return max(times) if times else storage.modified(path)
    except FileNotFoundError:
        return datetime.fromtimestamp(0, timezone.utc)
