"""Opens the shards of a corpus, processes them in order, and rejects records that cannot be indexed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from indexer.corpus.shard_file import ShardFile, StoredShard
from indexer.corpus.shard_reader import read_shard
from searchforge.artifacts.manifest import Manifest, ShardInfo, describe_rejects, verified_shards
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import UsageError

Shard = tuple[ShardInfo, ShardFile]
"""A shard of a corpus and its file."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def open_corpus(workspace: Workspace, manifest: Manifest, download: bool = True) -> list[Shard]:
    """Returns the shards of an embedding run.

    Args:
      download: Whether files are downloaded from a bucket and compared with the manifest now. Otherwise each is read
        from the workspace's storage, and compared, whenever it is used.

    Raises:
      UsageError: There are no records, or a shard was made by another encoder.
      JobError: A shard is missing or damaged.
    """
    require_images(manifest)
    shards: list[Shard] = (
        list(verified_shards(workspace, manifest))
        if download
        else [
            (info, StoredShard(workspace.storage, f"embeddings/{info.run or manifest.id}/{info.name}", info.sha256))
            for info in manifest.shards
        ]
    )
    for run in sorted({info.run for info in manifest.shards} - {"", manifest.id}):
        earlier = Manifest.model_validate(workspace.marker("embeddings", run))
        if earlier.fingerprint != manifest.fingerprint:
            raise UsageError(
                f"embeddings {manifest.id} are from encoder {manifest.fingerprint}, but reuse shards of embeddings "
                f"{run} from encoder {earlier.fingerprint}; embed the corpus again with embed.reuse_from none"
            )
    return shards


def require_images(manifest: Manifest) -> None:
    """Raises UsageError if an embedding run contains no items."""
    if not manifest.records:
        raise UsageError(
            f"embeddings {manifest.id} contain no items ({manifest.inputs} inputs, "
            f"{describe_rejects(manifest.rejected_by_reason)}); there is nothing to index"
        )


def require_valid_records(faults: Mapping[int, str], count: int, dead: Collection[int], name: str) -> None:
    """Raises UsageError with the first fault if a live record of a shard cannot be indexed."""
    live = sorted(faults.keys() - set(dead))
    if live:
        raise UsageError(f"{faults[live[0]]} ({len(live)} of {count} records of {name} cannot be indexed)")


def require_unique_ids(
    keys: Iterable[npt.NDArray[np.uint64]], shards: Sequence[Shard], dim: int
) -> npt.NDArray[np.uint64]:
    """Verifies that the ids of all live records are unique; uses 8 bytes of memory per item.

    Args:
      keys: Order keys of all records, for each shard.

    Returns:
      Order keys that different ids share; almost always empty.

    Raises:
      UsageError: An id occurs twice.
    """
    all_keys = list(keys)
    live = (np.delete(found, info.dead) for found, (info, _) in zip(all_keys, shards, strict=True))
    ordered = np.concatenate([np.empty(0, np.uint64), *live])
    ordered.sort()
    shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(shared):
        return shared
    sources: dict[bytes, str] = {}
    for found, (info, path) in zip(all_keys, shards, strict=True):
        rows = np.setdiff1d(np.flatnonzero(np.isin(found, shared)), info.dead)
        records = read_shard(path, dim) if len(rows) else None
        for row in rows.tolist():
            assert records
            id, uri = records.ids[row], records.uris[row].decode(errors="replace")
            if id in sources:
                raise UsageError(
                    f"id {id.decode()!r} occurs twice in the corpus, from {sources[id]} and from {uri}; "
                    "give every item a unique id"
                )
            sources[id] = uri
    return shared


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yields function(item) in the order of the items; each thread is at most one item ahead, which bounds memory.

    Meanwhile BLAS runs on one thread per call, as more would contend for the same cores.
    """
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        running: deque[Future[Result]] = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
