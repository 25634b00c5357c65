"""Writes an embedding run as Parquet files that pandas, DuckDB, FAISS, usearch and vector databases load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.exchange.columns import EMBEDDING, FINGERPRINT, ID, METADATA, TEXTS, MetadataColumns, column, texts
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.record_batches import RecordBatch

FILE_BYTES = 256 * 2**20
"""Approximate size of a file's embeddings, by which the number of files is chosen."""

_GROUP_BYTES, _MAX_GROUP_ROWS = 16 * 2**20, 2**16
"""Limits of a row group, which is held in memory: bytes of embeddings, and rows."""

_VECTORS = f"{EMBEDDING}.list.element"
"""Path of the embeddings' numbers in a Parquet file; they are not compressed, because they hardly can be."""


def write_parquet(
    read: Callable[[], Iterable[RecordBatch]],
    manifest: Manifest,
    folder: Path,
    advance: Callable[[int], None],
    file_bytes: int = FILE_BYTES,
) -> list[Path]:
    """Writes `data-<n>-of-<m>.parquet` files into a folder and returns their paths.

    Args:
      read: Iterates over the records; it is called twice, because the types of the metadata are found first.
      advance: Is called with the number of records processed since the last call; every record counts twice.
      file_bytes: Approximate size of a file's embeddings.
    """
    keys = _metadata_keys(read(), advance)
    schema = pa.schema(
        [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(EMBEDDING, pa.list_(pa.field("element", pa.float32(), nullable=False), manifest.dim), False),
            *(pa.field(name, pa.string(), nullable=False) for name in (*TEXTS, METADATA)),
            *(pa.field(key, type) for key, type in keys.items()),
        ],
        metadata={FINGERPRINT: manifest.fingerprint.encode()},
    )
    group_rows = max(1, min(_MAX_GROUP_ROWS, _GROUP_BYTES // (4 * manifest.dim)))
    rows = max(1, min(manifest.records, file_bytes // (4 * manifest.dim)))
    files = max(1, -(-manifest.records // rows))
    paths = [folder / f"data-{index:05d}-of-{files:05d}.parquet" for index in range(files)]
    tables = _Tables((_table(batch, schema, keys) for batch in read()), schema)
    for path in paths:
        with _writer(path, schema) as writer:
            remaining = rows
            while remaining and (table := tables.take(min(group_rows, remaining))):
                writer.write_table(table, row_group_size=group_rows)
                remaining -= len(table)
                advance(len(table))
    return paths


def _metadata_keys(batches: Iterable[RecordBatch], advance: Callable[[int], None]) -> dict[str, pa.DataType]:
    found = MetadataColumns()
    for batch in batches:
        for metadata in batch.metadata:
            if metadata != "{}":
                found.observe(json.loads(metadata))
        advance(len(batch.ids))
    return found.types()


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    leaves = [_VECTORS if name == EMBEDDING else name for name in schema.names]
    return pq.ParquetWriter(
        path,
        schema,
        compression={name: "none" if name == _VECTORS else "zstd" for name in leaves},
        use_dictionary=[name for name in leaves if name not in (ID, _VECTORS, METADATA)],
        write_statistics=[name for name in leaves if name not in (_VECTORS, METADATA)],
    )


def _table(batch: RecordBatch, schema: pa.Schema, keys: dict[str, pa.DataType]) -> pa.Table:
    metadata = [json.loads(values) if keys and values != "{}" else {} for values in batch.metadata]
    columns = [
        pa.array(batch.ids, pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(batch.vectors.ravel()), type=schema.field(EMBEDDING).type),
        *(pa.array(values, pa.string()) for values in texts(batch).values()),
        pa.array(batch.metadata, pa.string()),
        *(column(metadata, key, type) for key, type in keys.items()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


class _Tables:
    """Cuts a stream of tables into tables of other lengths."""

    def __init__(self, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
        self._tables, self._rest = tables, schema.empty_table()

    def take(self, rows: int) -> pa.Table:
        """Returns the next `rows` rows, or fewer at the end of the stream."""
        parts = [self._rest]
        while sum(map(len, parts)) < rows and (table := next(self._tables, None)) is not None:
            parts.append(table)
        joined = pa.concat_tables(parts)
        self._rest = joined.slice(rows)
        return joined.slice(0, rows)
