"""Where each item of an embedding run lies: a SQLite file in the workspace's cache, built once, read by id.

A corpus of a million items would take gigabytes in memory. `python -m infra.serve.source_table WORKSPACE EMBEDDINGS`
builds the file; a server runs that as a process of its own, since parsing a million records would hold up its answers.
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
class Source:
    """Where an item lies, as of EmbeddingRecord."""

    uri: str
    byte_range: str
    content_hash: str


def table_path(workspace: Workspace, embeddings: str) -> Path:
    """Returns where an embedding run's file is, or will be."""
    return workspace.cache("sources") / f"{embeddings}.sqlite"


def find_source(path: Path, id: str) -> Source | None:
    """Returns where an item lies; None where the corpus has no such item. May be called from any thread."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        row = connection.execute("SELECT uri, place, content_hash FROM sources WHERE id = ?", (id,)).fetchone()
    return Source(*row) if row else None


def build_table(workspace: Workspace, embeddings: str) -> Path:
    """Writes the file, unless it is there; of several processes that try, one does.

    Raises:
      UsageError: there is no such embedding run.
      JobError: a shard is missing or damaged.
    """
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    path = table_path(workspace, embeddings)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when the holder dies
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            unfinished.unlink(missing_ok=True)  # a killed process left it
            rows = (
                (record.id, record.uri, record.byte_range, record.content_hash)
                for record in read_shards(workspace, manifest)
            )
            _write(unfinished, rows)
            unfinished.replace(path)
    return path


def _write(path: Path, rows: Iterator[tuple[str, str, str, str]]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # an unfinished file is thrown away
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
    """Builds the table of EMBEDDINGS in WORKSPACE."""
    os.nice(10)  # leaves the cores to the answers
    build_table(Workspace(workspace), embeddings)


if __name__ == "__main__":
    main()
