"""Retention: deletes releases beyond `reindex.keep_releases` and the artifacts that no remaining release needs.

Needed artifacts are those that remaining releases were built from, those of the current run, encoders that were rolled
back, and their dependencies: an embedding run refers to shards of earlier runs, and so does the plan of an unfinished
one. Everything else, including unfinished artifacts, is deleted once it has not been written to for some time. An
artifact's marker is deleted first, so that a partly deleted folder never counts as an artifact; the next run completes
an interrupted deletion. Encoders that no embedding run ever used are kept, since they were trained manually.
"""

from __future__ import annotations

import graphlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from infra.reindex import journal, lease
from infra.reindex.plan import PROVENANCE_KINDS
from infra.releases import channels
from infra.releases.pruning import prune as prune_releases
from searchforge.artifacts.manifest import METADATA_ERRORS
from searchforge.artifacts.workspace import MARKERS, Kind, Workspace
from searchforge.captions.dataset import has_captions, image_folder
from searchforge.config import Config
from searchforge.errors import JobError
from searchforge.storage.base import Storage, list_abandoned

logger = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("checks", "searchers", "encoders", "embeddings")
"""Order of deletion: dependents before what they were built from, but encoders before the embedding runs that name
them, so that an interrupted retention still finds which encoders were used.
"""

MIN_AGE = timedelta(days=1)
"""Age up to which artifacts are always kept, since a command may be using them."""

FEATURES_AGE = timedelta(days=30)
"""How long cached features of frozen towers, which are expensive to compute, are kept after their last use."""


class Artifact(NamedTuple):
    """An artifact, finished or not."""

    kind: Kind
    id: str


def prune(
    config: Config, workspace: Workspace, target: Workspace, keep: Mapping[Kind, str], now: datetime | None = None
) -> list[Artifact]:
    """Deletes everything that is no longer needed. The caller must hold the lease.

    Args:
      workspace: Workspace with the artifacts.
      target: Workspace with the releases; may be the same one.
      keep: Ids of the current run's artifacts by kind, which are kept.
      now: Reference time for ages; by default the storage's clock.

    Returns:
      The artifacts that were deleted from the workspace.

    Raises:
      JobError: The storage is unavailable, or a damaged marker makes it impossible to tell what is needed.
    """
    settings = config.reindex
    if settings.keep_releases is None:
        return []
    prune_releases(target, settings.keep_releases, settings.keep_days, now=now)
    now = now or workspace.storage.now()
    limit = now - max(timedelta(days=settings.keep_days), MIN_AGE)
    existing = [Artifact(kind, id) for kind in KINDS for id in workspace.all_ids(kind)]
    recent = [found for found in existing if _last_written(workspace.storage, f"{found.kind}/{found.id}") > limit]
    kept = [Artifact(kind, id) for kind, id in keep.items()]
    needed = _with_dependencies(workspace, [*_released(target), *_withdrawn(target), *kept, *recent])
    unneeded = _unneeded(workspace, existing, needed)
    for artifact in unneeded:
        with workspace.storage.snapshot(f"{artifact.kind}/{artifact.id}") as snapshot:
            snapshot.delete(first=MARKERS[artifact.kind])
    _delete_leftovers(workspace, needed, limit)
    for folder in (journal.FOLDER, str(Path(lease.LEASE).parent)):
        for path in list_abandoned(workspace.storage, folder, limit):
            workspace.storage.delete(path)
    _prune_caches(config, workspace, needed, now, limit)
    if unneeded:
        counts = (f"{sum(artifact.kind == kind for artifact in unneeded)} {kind}" for kind in KINDS)
        logger.info(f"  deleted, since no release needs them: {', '.join(counts)}")
    return unneeded


def _released(target: Workspace) -> Iterator[Artifact]:
    """Yields the artifacts that the releases were built from, in this workspace or another one."""
    for id in target.ids("releases"):
        provenance = target.marker("releases", id)["provenance"]
        yield from (Artifact(kind, provenance[key]) for key, kind in PROVENANCE_KINDS.items() if key in provenance)


def _withdrawn(target: Workspace) -> Iterator[Artifact]:
    """Yields the encoders that were rolled back: if one were deleted, the same settings would train it again."""
    for channel in channels.channels(target.storage):
        for id in channels.read(target.storage, channel).pointer.withdrawn_encoders:
            yield Artifact("encoders", id)


def _with_dependencies(workspace: Workspace, roots: Iterable[Artifact]) -> set[Artifact]:
    """Returns artifacts and their transitive dependencies, whether or not they are in the workspace."""
    found: set[Artifact] = set()
    waiting = list(roots)
    while waiting:
        artifact = waiting.pop()
        if artifact not in found:
            found.add(artifact)
            waiting += _dependencies(workspace, artifact)
    return found


def _dependencies(workspace: Workspace, artifact: Artifact) -> Iterator[Artifact]:
    """Yields the artifacts that an artifact was built from, or that an unfinished embedding run builds on."""
    if not workspace.committed(*artifact):
        if artifact.kind == "embeddings":
            yield from _planned_dependencies(workspace, artifact.id)
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
        path = workspace.url(*artifact, MARKERS[artifact.kind])
        raise JobError(f"{path} does not say what it was built from ({error}); delete {artifact.id}") from None


def _planned_dependencies(workspace: Workspace, id: str) -> Iterator[Artifact]:
    """Yields the embedding runs whose records the plan of an unfinished run reuses; none if it has no valid plan."""
    from beam_jobs.planning import plan as planning

    if plan := planning.read(workspace, f"embeddings/{id}"):
        for run in {plan.base, *(shard.run for shard in plan.carried)} - {None, ""}:
            yield Artifact("embeddings", str(run))


def _unneeded(workspace: Workspace, existing: Collection[Artifact], needed: Collection[Artifact]) -> list[Artifact]:
    """Returns the artifacts to delete, in order of deletion; embedding runs come before the runs they build on."""
    unneeded = [artifact for artifact in existing if artifact not in needed]
    runs = [artifact for artifact in unneeded if artifact.kind == "embeddings"]
    bases_first = graphlib.TopologicalSorter({run: set(_dependencies(workspace, run)) for run in runs}).static_order()
    unneeded = [artifact for artifact in unneeded if artifact.kind != "embeddings"]
    unneeded += [artifact for artifact in reversed(list(bases_first)) if artifact in runs]
    used_encoders = {
        workspace.marker(kind, id).get("encoder")
        for kind, id in unneeded
        if kind == "embeddings" and workspace.committed(kind, id)
    }
    return [
        artifact
        for artifact in unneeded
        if artifact.kind != "encoders" or artifact.id in used_encoders or not workspace.committed(*artifact)
    ]


def _delete_leftovers(workspace: Workspace, artifacts: Iterable[Artifact], limit: datetime) -> None:
    """Deletes what embedding runs that were killed after their commit left behind: plans, reports, partial files."""
    for kind, id in artifacts:
        if kind == "embeddings" and workspace.committed(kind, id):
            marker = workspace.marker(kind, id)
            own_shards = {shard["name"] for shard in marker["shards"] if not shard["run"]}
            keep = {MARKERS[kind], "report.json", METADATA_ERRORS, *marker["rejects"], *own_shards}
            with workspace.storage.snapshot(f"{kind}/{id}") as snapshot:
                old = {name for name, found in snapshot.objects.items() if found.modified <= limit}
            for name in old - keep:
                workspace.storage.delete(f"{kind}/{id}/{name}")


def _prune_caches(
    config: Config, workspace: Workspace, needed: Collection[Artifact], now: datetime, limit: datetime
) -> None:
    """Deletes local copies of artifacts that are gone from the bucket, and unused or old cache entries."""
    storages = {storage.root: storage for storage in (workspace.storage, workspace.local_storage)}
    if len(storages) == 2:  # a bucket, and local copies of its artifacts
        for kind in KINDS:
            for id in workspace.local_storage.list_folders(kind):
                if not workspace.committed(kind, id):
                    workspace.local_storage.delete_folder(f"{kind}/{id}")
    builds = [workspace.marker(*one) for one in needed if one.kind == "searchers" and workspace.committed(*one)]
    quantizers = {str(build.get("quantizer")) for build in builds}
    runs = {id for kind, id in needed if kind == "embeddings"}
    manifests = [workspace.marker("embeddings", id) for id in runs if workspace.committed("embeddings", id)]
    shards = {shard["sha256"] for manifest in manifests for shard in manifest["shards"]}
    unpacked = PurePosixPath(image_folder(config)).parent.name if has_captions(config.data) else ""
    for storage in storages.values():
        for name in storage.list_folders("cache/parts"):
            if name not in quantizers:
                _delete_old(storage, f"cache/parts/{name}", limit)
                continue
            for file in storage.list_files(f"cache/parts/{name}"):
                if file.partition(".")[0] not in shards:
                    _delete_old(storage, f"cache/parts/{name}/{file}", limit)
        for name in storage.list_files("cache/folded"):
            if name.partition(".")[0].rpartition("-")[2] not in quantizers:
                _delete_old(storage, f"cache/folded/{name}", limit)
        for name in storage.list_folders("cache/captions"):
            if name != unpacked:
                _delete_old(storage, f"cache/captions/{name}", limit)
        for name in storage.list_files("cache/sources"):
            if name.partition(".")[0] not in runs:
                _delete_old(storage, f"cache/sources/{name}", limit)
        for folder in ("cache/queries", "cache/images"):
            for name in storage.list_files(folder):
                _delete_old(storage, f"{folder}/{name}", limit)
        for name in storage.list_folders("cache/training"):
            _delete_old(storage, f"cache/training/{name}", limit)
        for tower in storage.list_folders("cache/features"):
            for name in storage.list_files(f"cache/features/{tower}"):
                _delete_old(storage, f"cache/features/{tower}/{name}", now - FEATURES_AGE)


def _delete_old(storage: Storage, path: str, limit: datetime) -> None:
    """Deletes a file or folder that was not written to after `limit`."""
    if _last_written(storage, path) <= limit:
        storage.delete_folder(path)
        storage.delete(path)


def _last_written(storage: Storage, path: str) -> datetime:
    """Returns the time of the last write to a file or folder, or the epoch if it does not exist."""
    with storage.snapshot(path) as snapshot:
        times = [found.modified for found in snapshot.objects.values()]
    try:
        return max(times) if times else storage.modified(path)
    except FileNotFoundError:
        return datetime.fromtimestamp(0, timezone.utc)
