"""Shards: which item goes into which, and how one is written so that it is whole or not there.

The shard is the unit of work: one Beam element. Its report, written after its records and rejects, marks it as
done, so that a killed job started again redoes at most the shards in flight, on any runner. Items are assigned by
a hash of their id and written in the order of the ids: the same corpus gives the same bytes.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from beam_jobs.corpus import Item
from searchforge.hashing import sha256_bytes
from searchforge.manifest import ShardInfo
from searchforge.records import EmbeddingRecord, write_tfrecords
from searchforge.storage import Storage

ITEMS_PER_SHARD = 1024
MIN_SHARDS, MAX_SHARDS = 8, 1000


@dataclass(frozen=True)
class Shard:
    """One unit of work: `items`, in the order of their ids, become shard `index` of `total`."""

    index: int
    total: int
    items: tuple[Item, ...]

    def name(self, kind: str, suffix: str) -> str:
        """Returns the name of one of the shard's files."""
        return f"{kind}-{self.index:05d}-of-{self.total:05d}.{suffix}"


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard's items.

    Attributes:
      rejected: number of rejects by reason.
      rejects: name of the JSONL file that lists them; empty where there are none.
    """

    shard: dict[str, Any]
    rejected: dict[str, int] = field(default_factory=dict)
    rejects: str = ""


def plan_shards(items: Sequence[Item], count: int | None = None) -> list[Shard]:
    """Assigns items to `count` shards, by default one for about 1,000 items, but at least 8 and at most 1,000."""
    total = count or min(max(MIN_SHARDS, -(-len(items) // ITEMS_PER_SHARD)), MAX_SHARDS)
    members: list[list[Item]] = [[] for _ in range(total)]
    for item in items:
        members[int(sha256_bytes(item.id.encode())[:15], 16) % total].append(item)
    return [Shard(index, total, tuple(shard)) for index, shard in enumerate(members)]


def write_shard(
    storage: Storage, folder: str, shard: Shard, records: Iterable[EmbeddingRecord], rejects: Sequence[dict[str, str]]
) -> ShardReport:
    """Writes a shard's records and rejects and, last, its report into a folder of the storage."""
    buffer, count = io.BytesIO(), 0

    def payloads() -> Iterable[bytes]:
        nonlocal count
        for record in records:
            count += 1
            yield record.to_bytes()

    write_tfrecords(buffer, payloads())
    data = buffer.getvalue()
    info = ShardInfo(name=shard.name("data", "tfrecord"), count=count, bytes=len(data), sha256=sha256_bytes(data))
    storage.write(f"{folder}/{info.name}", data)
    rejects_name = shard.name("rejects", "jsonl") if rejects else ""
    if rejects:
        lines = (json.dumps(reject, ensure_ascii=False, sort_keys=True) + "\n" for reject in rejects)
        storage.write(f"{folder}/{rejects_name}", "".join(lines).encode())
    report = ShardReport(info.model_dump(), dict(Counter(reject["reason"] for reject in rejects)), rejects_name)
    storage.write(f"{folder}/{shard.name('done', 'json')}", json.dumps(asdict(report)).encode())
    return report


def read_report(storage: Storage, folder: str, shard: Shard) -> ShardReport | None:
    """Returns the report of a finished shard, None where it is not finished."""
    try:
        return ShardReport(**json.loads(storage.read(f"{folder}/{shard.name('done', 'json')}")))
    except FileNotFoundError:
        return None


def remove_leftovers(storage: Storage, folder: str, keep: Iterable[str]) -> None:
    """Deletes what only an unfinished run needs: the shards' reports, and what killed writers left."""
    for name in set(storage.files(folder)) - set(keep):
        storage.delete(f"{folder}/{name}")
