"""The listing of a corpus, kept in a temporary SQLite file because it may be larger than memory.

It answers what a plan needs to know: items whose id is taken, items that an earlier run holds unchanged, items with
equal contents, and the tasks of each shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beam_jobs.corpus.items import Item
from beam_jobs.corpus.reading import read_bytes
from beam_jobs.planning.shards import USUAL_SHARDS, RecordLocation, Task, shard_count, shard_of
from searchforge import progress
from searchforge.artifacts.manifest import Manifest, ShardInfo, verified_shards
from searchforge.artifacts.records import TFRECORD_FRAMING, TFRECORD_HEADER, iterate_tfrecords, record_fields
from searchforge.artifacts.workspace import Workspace
from searchforge.hashing import ID_LENGTH, canonical_json, sha256_bytes
from searchforge.image_decoding import RejectedInput
from searchforge.storage.base import Storage

_MAX_FRAGMENTATION = 4
"""Factor by which a run may exceed the number of shard files it needs before its records are rewritten."""

_HASH_THREADS = 16
_HASHED_AT_ONCE = 32
_CHUNK = 4096
_CACHE_KIB = 16 * 1024

_LISTED_PREFIX = "md5:"
"""Prefix of content hashes that a bucket's listing provides, which are known without reading the objects."""

_DUPLICATE = "duplicate_id"

_CARRIED, _COPIED, _FRESH = 1, 2, 3
"""States of an item: its record in an earlier run stays in use, is copied, or does not exist."""


@dataclass(frozen=True)
class Changes:
    """Number of ids by their item's change since an earlier run; those rejected then and still listed are unchanged."""

    added: int
    changed: int
    removed: int
    unchanged: int


class CorpusListing:
    """A listing of a corpus in a temporary file. Use it as a context manager, which deletes the file on exit."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="searchforge-listing-")
        self._db = sqlite3.connect(Path(self._folder.name) / "listing.sqlite", isolation_level=None)
        # The file does not outlive the process, so it needs no durability.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}", "temp_store=FILE"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(
            """
            CREATE TABLE items(
                id TEXT, copy INTEGER, uri TEXT, file TEXT, version TEXT, size INTEGER, offset INTEGER, content TEXT,
                metadata TEXT, reject TEXT, detail TEXT, may_pass INTEGER, text TEXT, metadata_error TEXT,
                state INTEGER, base INTEGER, shard INTEGER, owner TEXT,
                PRIMARY KEY (id, copy)
            ) WITHOUT ROWID;
            CREATE TABLE base(
                number INTEGER PRIMARY KEY, shard INTEGER, row INTEGER, offset INTEGER, size INTEGER,
                id TEXT, uri TEXT, version TEXT, metadata TEXT, content TEXT, listed_content TEXT
            );
            """
        )
        self.count = 0

    def __enter__(self) -> CorpusListing:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def add(self, items: Iterable[Item]) -> None:
        """Adds items; one whose id is taken becomes a reject that names the item that has the id."""
        for chunk in _chunks(items):
            with self._transaction():
                for item in chunk:
                    if not self._insert(item):
                        uri, offset, copies = self._db.execute(
                            "SELECT uri, offset, (SELECT max(copy) FROM items WHERE id = ?1) FROM items "
                            "WHERE id = ?1 AND copy = 0",
                            (item.id,),
                        ).fetchone()
                        first = uri if offset is None else f"{uri} at byte {offset}"
                        detail = f"{first} has the same id and comes first; ids must be unique"
                        self._insert(item.rejected(RejectedInput(_DUPLICATE, detail)), copies + 1)
            self.count += len(chunk)

    def _insert(self, item: Item, copy: int = 0) -> bool:
        """Inserts an item and returns True, or returns False if there is one with its id and copy number."""
        row = (item.id, copy, *_values(item))
        insert = f"INSERT OR IGNORE INTO items VALUES({', '.join('?' * len(row))}, NULL, NULL, NULL, NULL)"
        return self._db.execute(insert, row).rowcount == 1

    def add_base(self, manifest: Manifest) -> None:
        """Adds the items of an earlier run, as it recorded them; call `read_base` first."""
        self._db.execute(
            "INSERT INTO items SELECT id, 0, uri, '', version, -1, NULL, content, metadata, '', '', 0, NULL, '', "
            f"{_COPIED}, number, NULL, NULL FROM base"
        )
        self.count = manifest.inputs

    def digest(self) -> str:
        """Returns a hash that changes when any item is added, removed or changed."""
        digest = hashlib.sha256()
        columns = "id, uri, version, metadata, reject, content"
        for *row, error in self._db.execute(f"SELECT {columns}, metadata_error FROM items ORDER BY id, copy"):
            digest.update(canonical_json([*row, error] if error else row) + b"\n")
        return digest.hexdigest()[:ID_LENGTH]

    def read_base(self, workspace: Workspace, manifest: Manifest) -> None:
        """Reads the records of an earlier run into the listing.

        Raises:
          JobError: The shards of the run are missing or damaged.
        """
        for chunk in _chunks(_base_rows(workspace, manifest)):
            with self._transaction():
                self._db.executemany("INSERT INTO base VALUES(NULL,?,?,?,?,?,?,?,?,?,?)", chunk)

    def changes(self, workspace: Workspace, manifest: Manifest) -> Changes:
        """Counts the changes since an earlier run, which may have used another encoder; does not change the listing.

        Raises:
          JobError: The run's shards are missing or damaged.
        """
        self.read_base(workspace, manifest)
        rejected = set(_rejected_ids(workspace, manifest))

        def count(query: str) -> int:
            return int(self._db.execute(f"SELECT count(*) FROM {query}").fetchone()[0])

        known = "items JOIN base ON base.id = items.id AND items.copy = 0"
        same = "base.uri = items.uri AND base.version = items.version AND base.metadata = items.metadata"
        listed, both, unchanged = count("items WHERE copy = 0"), count(known), count(f"{known} AND {same}")
        fresh = self._db.execute("SELECT id FROM items WHERE copy = 0 AND id NOT IN (SELECT id FROM base)")
        still_rejected = sum(id in rejected for (id,) in fresh)
        held = count("base")
        self._db.execute("DELETE FROM base")
        return Changes(
            added=listed - both - still_rejected,
            changed=both - unchanged,
            removed=held + len(rejected) - both - still_rejected,
            unchanged=unchanged + still_rejected,
        )

    def carry_over(self, manifest: Manifest, max_dead_fraction: float) -> tuple[ShardInfo, ...]:
        """Finds the items that an earlier run holds unchanged.

        Returns:
          The shard files that stay in use. It is empty if too many of their records would be dead or there would be
          too many files; the live records are then copied.
        """
        self._db.execute(
            f"""
            UPDATE items SET state = {_CARRIED}, base = base.number FROM base
            WHERE base.id = items.id AND base.uri = items.uri AND base.version = items.version
            AND base.metadata = items.metadata AND items.version != '' AND items.reject = ''
            """
        )
        dead: list[list[int]] = [[*shard.dead] for shard in manifest.shards]
        for shard, row in self._db.execute(
            f"SELECT shard, row FROM base WHERE number NOT IN (SELECT base FROM items WHERE state = {_CARRIED}) "
            "ORDER BY shard, row"
        ):
            dead[shard].append(row)
        carried = tuple(
            shard.model_copy(update={"run": shard.run or manifest.id, "dead": tuple(sorted(rows))})
            for shard, rows in zip(manifest.shards, dead, strict=True)
            if len(rows) < shard.count
        )
        records, live = sum(shard.count for shard in carried), sum(shard.live for shard in carried)
        too_many = len(carried) > _MAX_FRAGMENTATION * max(USUAL_SHARDS, shard_count(live))
        if live < records * (1 - max_dead_fraction) or too_many:
            self._db.execute(
                f"UPDATE items SET (state, content) = ({_COPIED}, (SELECT content FROM base WHERE number = items.base))"
                f" WHERE state = {_CARRIED}"
            )
            return ()
        return carried

    def hash_candidates(self, max_bytes: int, against_base: bool, remote: bool) -> None:
        """Hashes the items whose content may equal that of another item.

        Args:
          max_bytes: Size limit of an input; larger ones are not hashed.
          against_base: Whether the content may also equal that of a record of the base.
          remote: Whether to hash remote files too, each of which is then read twice.
        """
        # Equal contents have equal sizes, so an item of a unique size need not be read.
        shared = "(SELECT size FROM items WHERE state IS NULL AND reject = '' GROUP BY size HAVING count(*) > 1)"
        condition = "1" if against_base else f"size IN {shared}"
        if not remote:
            condition += " AND file NOT LIKE '%://%'"
        self._db.execute(
            "CREATE TEMP TABLE candidates AS SELECT id, file, offset, size FROM items "
            "WHERE state IS NULL AND reject = '' AND content = '' AND version != '' AND size != 0 "
            f"AND {condition} ORDER BY id"
        )
        (count,) = self._db.execute("SELECT count(*) FROM candidates").fetchone()
        if not count:
            return

        def content(file: str, offset: int | None, size: int) -> str:
            try:
                return f"sha256:{sha256_bytes(read_bytes(file, max_bytes, offset, size))}"
            except RejectedInput:  # the worker will find the same and reject the item
                return ""

        def contents(rows: list[tuple[str, str, int | None, int]]) -> list[tuple[str, str]]:
            return [(content(file, offset, size), id) for id, file, offset, size in rows]

        with ThreadPoolExecutor(_HASH_THREADS) as pool, _hashing_progress(count) as advance:
            for first in range(1, count + 1, _CHUNK):
                pages = "SELECT id, file, offset, size FROM candidates WHERE rowid BETWEEN ? AND ?"
                rows = self._db.execute(pages, (first, first + _CHUNK - 1)).fetchall()
                # Handing a thread a single small file takes longer than hashing it.
                parts = pool.map(
                    contents, (rows[at : at + _HASHED_AT_ONCE] for at in range(0, len(rows), _HASHED_AT_ONCE))
                )
                with self._transaction():
                    self._db.executemany(
                        "UPDATE items SET content = ? WHERE id = ? AND copy = 0", itertools.chain(*parts)
                    )
                advance(len(rows))

    def deduplicate(self) -> None:
        """Finds contents that the base holds, and makes the first item of each content the owner of the others."""
        self._db.execute("CREATE INDEX item_content ON items(content, id) WHERE content != ''")
        for column in ("content", "listed_content"):
            wanted = "SELECT content FROM items WHERE state IS NULL AND reject = '' AND content != ''"
            self._db.execute(
                f"UPDATE items SET state = {_COPIED}, base = known.number FROM "
                f"(SELECT min(number) AS number, {column} AS content FROM base WHERE {column} IN ({wanted}) "
                f"GROUP BY {column}) AS known "
                "WHERE items.content = known.content AND items.content != '' AND items.state IS NULL "
                "AND items.reject = ''"
            )
        self._db.execute(f"UPDATE items SET state = {_FRESH} WHERE state IS NULL")
        self._db.execute("UPDATE items SET owner = id")
        self._db.execute(
            f"""
            UPDATE items SET owner = (
                SELECT other.id FROM items AS other
                WHERE other.content = items.content AND other.content != '' AND other.state = items.state
                AND other.reject = '' ORDER BY other.id LIMIT 1
            ) WHERE state != {_CARRIED} AND content != '' AND reject = ''
            """
        )

    def assign_shards(self, shards: int | None) -> tuple[int, ...]:
        """Assigns the items to process to shards by a hash of their owner's id; returns the number of items of each."""
        (remaining,) = self._db.execute(f"SELECT count(*) FROM items WHERE state != {_CARRIED}").fetchone()
        total = min(shards or shard_count(remaining), remaining)
        self._db.create_function("shard", 1, lambda id: shard_of(id, total), deterministic=True)
        self._db.execute(f"UPDATE items SET shard = shard(owner) WHERE state != {_CARRIED}")
        self._db.execute("CREATE INDEX item_shard ON items(shard, owner, id) WHERE shard IS NOT NULL")
        sizes = [0] * total
        for shard, count in self._db.execute(
            "SELECT shard, count(*) FROM items WHERE shard IS NOT NULL GROUP BY shard"
        ):
            sizes[shard] = count
        return tuple(sizes)

    def tasks(self, shard: int, base: Manifest | None) -> Iterator[Task]:
        """Yields the tasks of a shard, sorted by the id of the owner; a reject with a taken id is a task of its own."""
        rows = self._db.execute(
            """
            SELECT items.owner, items.copy, items.id, items.uri, items.file, items.version, items.size, items.offset,
                items.content, items.metadata, items.reject, items.detail, items.may_pass, items.text,
                base.shard, base.offset, base.size
            FROM items LEFT JOIN base ON base.number = items.base
            WHERE items.shard = ? ORDER BY items.owner, items.copy, items.id
            """,
            (shard,),
        )
        for _, group in itertools.groupby(rows, key=lambda row: row[:2]):
            members = list(group)
            items = tuple(_item(*row[2:-3]) for row in members)
            number, offset, size = members[0][-3:]
            location = None
            if number is not None:
                assert base is not None
                info = base.shards[number]
                location = RecordLocation(info.run or base.id, info.name, offset, size)
            yield Task(items, location)

    def upload_metadata_errors(self, storage: Storage, path: str) -> int:
        """Writes the items whose metadata could not be read as JSON Lines, if there are any; returns their number."""
        local, count = Path(self._folder.name) / "metadata-errors.jsonl", 0
        with local.open("w", encoding="utf-8") as file:
            for id, uri, detail in self._db.execute(
                "SELECT id, uri, metadata_error FROM items WHERE metadata_error != '' AND reject = '' ORDER BY id"
            ):
                line = json.dumps({"id": id, "uri": uri, "detail": detail}, ensure_ascii=False, sort_keys=True)
                file.write(f"{line}\n")
                count += 1
        if count:
            storage.upload(local, path)
        return count

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        yield
        self._db.execute("COMMIT")


def _values(item: Item) -> tuple[Any, ...]:
    """Returns the columns of an item in the items table, from `uri` to `metadata_error`."""
    metadata = canonical_json(item.metadata).decode() if item.metadata else "{}"
    listed = item.content if item.content.startswith(_LISTED_PREFIX) else ""
    return (
        item.uri,
        item.file,
        f"{item.version}/{listed}" if listed else item.version,
        item.size,
        item.offset,
        item.content,
        metadata,
        item.reject,
        item.detail,
        item.may_pass,
        item.text,
        item.metadata_error,
    )


def _item(*row: Any) -> Item:
    """Returns the item of a row of the items table, from `id` to `text`."""
    id, uri, file, version, size, offset, content, metadata, reject, detail, may_pass, text = row
    parsed = json.loads(metadata)
    return Item(id, uri, file, version, size, offset, content, parsed, reject, detail, bool(may_pass), text)


def _base_rows(workspace: Workspace, manifest: Manifest) -> Iterator[tuple[Any, ...]]:
    for number, (shard, path) in enumerate(verified_shards(workspace, manifest)):
        dead, position = frozenset(shard.dead), 0
        with path.open("rb") as file:
            for row, payload in enumerate(iterate_tfrecords(file)):
                if row not in dead:
                    fields = record_fields(payload)  # skips parsing the vector; the file is verified
                    id, uri, version = fields[b"id"].decode(), fields[b"uri"].decode(), fields[b"version"].decode()
                    metadata = fields[b"metadata"].decode()
                    if metadata != "{}":
                        metadata = canonical_json(json.loads(metadata)).decode()
                    content = f"sha256:{fields[b'content_hash'].decode()}"
                    at = (number, row, position + TFRECORD_HEADER, len(payload))
                    yield (*at, id, uri, version, metadata, content, _listed_hash(version))
                position += len(payload) + TFRECORD_FRAMING


def _rejected_ids(workspace: Workspace, manifest: Manifest) -> Iterator[str]:
    for name in manifest.rejects:
        for line in workspace.storage.read(f"embeddings/{manifest.id}/{name}").splitlines():
            reject = json.loads(line)
            if reject["reason"] != _DUPLICATE:
                yield reject["id"]


def _listed_hash(version: str) -> str:
    """Returns the content hash from a bucket's listing, which records keep in their version; "" if there is none."""
    content = version.partition("/")[2]
    return content if content.startswith(_LISTED_PREFIX) else ""


def _chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    waiting = iter(values)
    while chunk := list(itertools.islice(waiting, _CHUNK)):
        yield chunk


@contextlib.contextmanager
def _hashing_progress(count: int) -> Iterator[Any]:
    if count < _CHUNK:
        yield lambda _: None
        return
    with progress.track("hashing possible duplicates", count) as advance:
        yield advance
