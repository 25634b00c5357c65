"""SQLite table that maps the item ids of an embedding run to their images; built once, in the workspace's cache.

For a corpus of a million items, the same mapping would take gigabytes of memory. The search server builds the table in
a separate process (`python -m infra.source_table WORKSPACE EMBEDDINGS`), because parsing a million records would delay
its responses.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.workspace import Workspace
from searchforge.console.options import reports_errors


@dataclass(frozen=True)
class ItemSource:
    """Location and content hash of an item, as in EmbeddingRecord."""

    uri: str
    byte_range: str
    content_hash: str


def table_path(workspace: Workspace, embeddings: str) -> Path:
    """Returns the path of an embedding run's table, whether it exists or not."""
    return workspace.cache("sources") / f"{embeddings}.sqlite"


def find_source(path: Path, id: str) -> ItemSource | None:
    """Returns the source of an item; None if the table does not contain it. Thread-safe."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        row = connection.execute("SELECT uri, place, content_hash FROM sources WHERE id = ?", (id,)).fetchone()
    return ItemSource(*row) if row else None


def build_table(workspace: Workspace, embeddings: str) -> Path:
    """Builds the table unless it exists. Of several concurrent processes, one builds it and the others wait.

    Raises:
      UsageError: The embedding run does not exist.
      JobError: A shard is missing or damaged.
    """
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    path = table_path(workspace, embeddings)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it when the holder dies
        if not path.exists():
            temporary = path.with_suffix(".tmp")  # SQLite writes to a path, not to an open file
            temporary.unlink(missing_ok=True)  # left by a killed process
            rows = (
                (record.id, record.uri, record.byte_range, record.content_hash)
                for record in read_shards(workspace, manifest)
            )
            _write(temporary, rows)
            temporary.replace(path)
    return path


def _write(path: Path, rows: Iterator[tuple[str, str, str, str]]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # an incomplete file is discarded
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -65536")  # KiB
        connection.execute(
            "CREATE TABLE sources (id TEXT PRIMARY KEY, uri TEXT, place TEXT, content_hash TEXT) WITHOUT ROWID"
        )
        connection.executemany("INSERT INTO sources VALUES (?, ?, ?, ?)", rows)
        connection.commit()


@click.command()
@click.argument("workspace")
@click.argument("embeddings")
@reports_errors
def main(workspace: str, embeddings: str) -> None:
    """Builds the source table of EMBEDDINGS in WORKSPACE."""
    os.nice(10)  # leave the cores to queries
    build_table(Workspace(workspace), embeddings)


if __name__ == "__main__":
    main()
