"""Shards of an embedding run and their files: plan, records, rejects, and the report that marks a shard as done.

A shard is the unit of work, one Beam element. Its report is written last, so that a restarted job repeats at most the
shards that were in flight, on any runner. Records are sorted by id, so that the same plan gives
byte-identical shards, given the same CPU instruction set and library versions.

No two writers give different contents to one file: the names of records and rejects contain a hash of the content, and
those of plans and reports the token of the plan. A late worker, or a concurrent run of the same corpus, can thus not
change what a manifest vouches for.
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
from searchforge.storage.files import is_temporary

ITEMS_PER_SHARD = 1024
MIN_ITEMS_PER_SHARD = 32
MAX_SHARDS = 10_000
USUAL_SHARDS = 8
"""Number of shards of a small corpus, which lets several workers share it; fewer below MIN_ITEMS_PER_SHARD each."""

_HASH_LENGTH = 12
"""Number of hexadecimal digits of a content hash in a file name."""


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `total` of a plan.

    Attributes:
      plan: Token of the plan; empty if the shard is written without one.
    """

    index: int
    total: int
    plan: str = ""

    @property
    def plan_name(self) -> str:
        """Name of the shard's plan file."""
        return self._name("plan", self.plan, "jsonl")

    @property
    def report_name(self) -> str:
        """Name of the shard's report."""
        return self._name("done", self.plan, "json")

    def content_name(self, kind: str, suffix: str, data: bytes) -> str:
        """Returns the name of a file with this content, for example `data-00000-of-00008-0123456789ab.tfrecord`."""
        return self._name(kind, sha256_bytes(data)[:_HASH_LENGTH], suffix)

    def _name(self, kind: str, tag: str, suffix: str) -> str:
        return f"{kind}-{self.index:05d}-of-{self.total:05d}-{tag}.{suffix}"


@dataclass(frozen=True, order=True)
class RecordLocation:
    """Location of an earlier run's record: `size` bytes at `offset` in shard file `name` of run `run`.

    Locations are sorted by file, then by offset.
    """

    run: str
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Task:
    """Items with the same content, which share one embedding.

    Attributes:
      items: Items sorted by id; more than one only if their contents are known to be equal.
      stored_at: Location of a record that already holds the embedding, if there is one.
    """

    items: tuple[Item, ...]
    stored_at: RecordLocation | None = None

    def to_json(self) -> str:
        """Serializes the task as one line of a plan file."""
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
    """Result of a shard: each of its items was embedded, reused or rejected.

    Attributes:
      shard: The written records file, a ShardInfo as a dict.
      embedded: Number of contents that went through the encoder.
      reused: Number of items whose embedding came from another item of the same content or from an earlier run.
      rejected: Number of rejects by reason.
      retryable: Number of rejects whose cause may pass.
      rejects: Name of the JSONL file that lists the rejects; empty if there are none.
      bytes_read: Number of input bytes read.
      batch_size, batch_ms: Distributions over the encoder's calls.
      seconds: Wall time.
    """

    shard: dict[str, Any]
    embedded: int = 0
    reused: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    retryable: int = 0
    rejects: str = ""
    bytes_read: int = 0
    batch_size: Distribution = field(default_factory=Distribution)
    batch_ms: Distribution = field(default_factory=Distribution)
    seconds: float = 0.0


def shard_count(items: int) -> int:
    """Returns the number of shards for a number of items: 1,024 items per shard, but 8 shards for small corpora."""
    small = min(USUAL_SHARDS, items // MIN_ITEMS_PER_SHARD)
    return min(max(1, small, -(-items // ITEMS_PER_SHARD)), MAX_SHARDS)


def shard_of(id: str, total: int) -> int:
    """Returns the index of the shard that an id is assigned to."""
    return int(sha256_bytes(id.encode())[:15], 16) % total


def write_plan(storage: Storage, folder: str, shard: Shard, tasks: Iterable[Task]) -> None:
    """Writes the plan file of a shard."""
    lines = "".join(f"{task.to_json()}\n" for task in tasks)
    storage.write(f"{folder}/{shard.plan_name}", lines.encode())


def read_plan(storage: Storage, folder: str, shard: Shard) -> list[Task]:
    """Reads the plan file of a shard."""
    text = storage.read(f"{folder}/{shard.plan_name}").decode()
    return [Task.from_json(line) for line in text.split("\n") if line]


def write_records(
    storage: Storage, folder: str, shard: Shard, records: Iterable[EmbeddingRecord], rejects: Sequence[dict[str, Any]]
) -> tuple[ShardInfo, str]:
    """Writes a shard's records and rejects; returns the records file and the name of the rejects file, "" if none."""
    buffer = io.BytesIO()
    payloads = [record.to_bytes() for record in sorted(records, key=lambda record: record.id)]
    write_tfrecords(buffer, payloads)
    data = buffer.getvalue()
    name = shard.content_name("data", "tfrecord", data)
    info = ShardInfo(name=name, count=len(payloads), bytes=len(data), sha256=sha256_bytes(data))
    storage.write(f"{folder}/{info.name}", data)
    if not rejects:
        return info, ""
    ordered = sorted(rejects, key=lambda reject: reject["id"])
    lines = (json.dumps(reject, ensure_ascii=False, sort_keys=True) + "\n" for reject in ordered)
    listed = "".join(lines).encode()
    name = shard.content_name("rejects", "jsonl", listed)
    storage.write(f"{folder}/{name}", listed)
    return info, name


def write_report(storage: Storage, folder: str, shard: Shard, report: ShardReport) -> None:
    """Writes a shard's report, which marks the shard as done."""
    storage.write(f"{folder}/{shard.report_name}", json.dumps(asdict(report)).encode())


def read_report(storage: Storage, folder: str, shard: Shard) -> ShardReport | None:
    """Returns the report of a finished shard, or None if the shard is not finished."""
    try:
        value = json.loads(storage.read(f"{folder}/{shard.report_name}"))
    except FileNotFoundError:
        return None
    for name in ("batch_size", "batch_ms"):
        value[name] = Distribution(**value[name])
    return ShardReport(**value)


def rejected_by_reason(reports: Iterable[ShardReport]) -> dict[str, int]:
    """Returns the number of rejects in all shards by reason."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.rejected)
    return dict(sorted(total.items()))


def remove_temporary_files(storage: Storage, folder: str, keep: Iterable[str]) -> None:
    """Deletes the files of a finished run except `keep`: plans, shard reports, and shards of other attempts.

    Files that are being written are spared, since another process may have planned the same run.
    """
    for name in set(storage.list_files(folder)) - set(keep):
        if not is_temporary(name):
            storage.delete(f"{folder}/{name}")
