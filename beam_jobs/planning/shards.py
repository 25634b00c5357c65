"""Files of a run's shards: what is to be done, the records, the rejects, and the report that marks a shard as done.

The shard is the unit of work: one Beam element. Its report is written last, so that a killed job started again redoes
at most the shards in flight, on any runner. Records lie in the order of their ids: the same plan gives the same bytes.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from beam_jobs.corpus.items import Item
from beam_jobs.planning.distributions import Distribution
from searchforge.artifacts.manifest import ShardInfo
from searchforge.artifacts.records import EmbeddingRecord, write_tfrecords
from searchforge.hashing import sha256_bytes
from searchforge.storage.base import Storage

ITEMS_PER_SHARD = 1024
MIN_ITEMS_PER_SHARD = 32
MAX_SHARDS = 10_000
USUAL_SHARDS = 8
"""Small corpora have so many, for as many workers, unless these would hold fewer items than MIN_ITEMS_PER_SHARD."""


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `total`."""

    index: int
    total: int

    def name(self, kind: str, suffix: str) -> str:
        """Returns the name of one of the shard's files."""
        return f"{kind}-{self.index:05d}-of-{self.total:05d}.{suffix}"


@dataclass(frozen=True)
class RecordLocation:
    """Where an earlier run keeps a record: `size` bytes at `offset` in shard file `name` of run `run`."""

    run: str
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Task:
    """Items of the same content, which need one embedding.

    Attributes:
      items: in the order of their ids; more than one only where the contents are known to be the same.
      source: a record that holds the embedding already.
    """

    items: tuple[Item, ...]
    stored_at: RecordLocation | None = None

    def to_json(self) -> str:
        """Returns one line of a plan file."""
        items = [
            {key: value for key, value in vars(item).items() if key not in _DEFAULTS or value != _DEFAULTS[key]}
            for item in self.items
        ]
        return json.dumps(
            {"items": items, "source": asdict(self.stored_at) if self.stored_at else None}, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, line: str) -> Task:
        """Parses one line of a plan file."""
        value = json.loads(line)
        source = value["source"]
        return cls(tuple(Item(**item) for item in value["items"]), RecordLocation(**source) if source else None)


_DEFAULTS = {key: value for key, value in vars(Item("", "", "")).items() if key not in ("id", "uri", "file")}


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard's items: every one is embedded, reused or rejected.

    Attributes:
      shard: the written file, a ShardInfo as dict.
      embedded: contents that went through the encoder.
      reused: further items of the same content, and items whose embedding an earlier run holds.
      rejected: number of rejects by reason.
      rejects: name of the JSONL file that lists them; empty where there are none.
      bytes_read: of the inputs.
      batch_size, batch_ms: distributions over the calls of the encoder.
      seconds: wall time.
    """

    shard: dict[str, Any]
    embedded: int = 0
    reused: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    rejects: str = ""
    bytes_read: int = 0
    batch_size: Distribution = field(default_factory=Distribution)
    batch_ms: Distribution = field(default_factory=Distribution)
    seconds: float = 0.0


def shard_count(items: int) -> int:
    """Returns how many shards so many items are written to: 1,024 a shard, but 8 shards where these are not tiny."""
    small = min(USUAL_SHARDS, items // MIN_ITEMS_PER_SHARD)
    return min(max(1, small, -(-items // ITEMS_PER_SHARD)), MAX_SHARDS)


def shard_of(id: str, total: int) -> int:
    """Returns the shard of an id."""
    return int(sha256_bytes(id.encode())[:15], 16) % total


def write_plan(storage: Storage, folder: str, shard: Shard, tasks: Iterable[Task]) -> None:
    """Writes what a shard has to do."""
    lines = "".join(f"{task.to_json()}\n" for task in tasks)
    storage.write(f"{folder}/{shard.name('plan', 'jsonl')}", lines.encode())


def read_plan(storage: Storage, folder: str, shard: Shard) -> list[Task]:
    """Reads what a shard has to do."""
    text = storage.read(f"{folder}/{shard.name('plan', 'jsonl')}").decode()
    return [Task.from_json(line) for line in text.split("\n") if line]


def write_records(
    storage: Storage, folder: str, shard: Shard, records: Iterable[EmbeddingRecord], rejects: Sequence[dict[str, str]]
) -> tuple[ShardInfo, str]:
    """Writes a shard's records and rejects; returns the records' file and the name of that of the rejects."""
    buffer = io.BytesIO()
    payloads = [record.to_bytes() for record in sorted(records, key=lambda record: record.id)]
    write_tfrecords(buffer, payloads)
    data = buffer.getvalue()
    info = ShardInfo(
        name=shard.name("data", "tfrecord"), count=len(payloads), bytes=len(data), sha256=sha256_bytes(data)
    )
    storage.write(f"{folder}/{info.name}", data)
    if not rejects:
        return info, ""
    name = shard.name("rejects", "jsonl")
    ordered = sorted(rejects, key=lambda reject: reject["id"])
    lines = (json.dumps(reject, ensure_ascii=False, sort_keys=True) + "\n" for reject in ordered)
    storage.write(f"{folder}/{name}", "".join(lines).encode())
    return info, name


def write_report(storage: Storage, folder: str, shard: Shard, report: ShardReport) -> None:
    """Marks a shard as done."""
    storage.write(f"{folder}/{shard.name('done', 'json')}", json.dumps(asdict(report)).encode())


def read_report(storage: Storage, folder: str, shard: Shard) -> ShardReport | None:
    """Returns the report of a finished shard, None where it is not finished."""
    try:
        value = json.loads(storage.read(f"{folder}/{shard.name('done', 'json')}"))
    except FileNotFoundError:
        return None
    for name in ("batch_size", "batch_ms"):
        value[name] = Distribution(**value[name])
    return ShardReport(**value)


def rejected_by_reason(reports: Iterable[ShardReport]) -> dict[str, int]:
    """Returns the number of rejects of all shards by reason."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.rejected)
    return dict(sorted(total.items()))


def remove_leftovers(storage: Storage, folder: str, keep: Iterable[str]) -> None:
    """Deletes what only an unfinished run needs: plans, the shards' reports, and what killed writers left."""
    for name in set(storage.files(folder)) - set(keep):
        storage.delete(f"{folder}/{name}")
