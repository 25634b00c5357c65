"""Columns of exported and imported embeddings, and the metadata that becomes columns of its own.

`metadata` is a column of JSON objects, which keeps every value as it is. For queries there is also one column per key
of the metadata whose values have one type in all records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from searchforge.artifacts.record_batches import RecordBatch

ID, EMBEDDING, METADATA = "id", "embedding", "metadata"
TEXTS = ("uri", "content_hash", "version", "place")
"""Columns of texts, which are empty where unknown; `place` is the byte range of an archive's member."""

FIXED = (ID, EMBEDDING, *TEXTS, METADATA)
"""Columns of every export."""

RUN_FOLDER = "_run"
"""Folder of an export with the other files of its run. Readers of Parquet folders skip names that start with `_`."""

FINGERPRINT = b"searchforge.fingerprint"
"""Key of a Parquet file's schema metadata: fingerprint of the encoder that computed the embeddings."""

MAX_KEYS = 200
"""Maximum number of keys that become columns, because a writer holds a page of each in memory."""

_TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_MAX_INT64, _MAX_EXACT = 2**63 - 1, 2**53


def texts(batch: RecordBatch) -> dict[str, list[str]]:
    """Returns the values of the columns TEXTS."""
    return dict(zip(TEXTS, (batch.uris, batch.content_hashes, batch.versions, batch.byte_ranges), strict=True))


class MetadataColumns:
    """Finds the keys of metadata that become columns: those with values of one type, null or missing apart.

    Integers and floats together are floats, if none of the integers is too large to be one. Keys stay in the column
    `metadata` only if their values have several types, are objects or arrays, or if their name is, whatever its case,
    that of another column.
    """

    def __init__(self) -> None:
        self._types: dict[str, set[type]] = {}

    def observe(self, metadata: Mapping[str, Any]) -> None:
        """Adds the metadata of one record."""
        for key, value in metadata.items():
            kind = type(value)
            self._types.setdefault(key, set()).add(kind)
            if kind is int and abs(value) > _MAX_EXACT:
                self._types[key].add(_LargeInt if abs(value) <= _MAX_INT64 else object)

    def types(self) -> dict[str, pa.DataType]:
        """Returns the type of each column by key, in alphabetical order."""
        names = [name.lower() for name in (*FIXED, *self._types)]
        unique = (key for key in sorted(self._types) if names.count(key.lower()) == 1)
        found = {key: column for key in unique if (column := _column_type(self._types[key] - {type(None)}))}
        return dict(list(found.items())[:MAX_KEYS])


class _LargeInt:
    """Stands for integers that fit into 64 bits, but not exactly into a float."""


def _column_type(types: set[type]) -> pa.DataType | None:
    if types == {int, _LargeInt}:
        return _TYPES[int]
    if types == {int, float}:
        return _TYPES[float]
    return _TYPES.get(next(iter(types))) if len(types) == 1 else None


def column(metadata: Sequence[Mapping[str, Any]], key: str, type: pa.DataType) -> pa.Array:
    """Returns the values of a key as an array; null where it is missing."""
    return pa.array([values.get(key) for values in metadata], type)
