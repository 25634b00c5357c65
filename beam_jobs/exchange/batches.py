"""Batches of embeddings that were computed elsewhere, their checks, and their conversion to embedding records."""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from beam_jobs.corpus.metadata import MAX_METADATA, is_too_long, parse_object
from beam_jobs.exchange.columns import EMBEDDING, ID, METADATA, TEXTS
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.errors import UsageError

ROWS = 4096
"""Number of rows of a batch."""

NORM_TOLERANCE = 1e-3
"""Maximum difference from 1 of the length of a vector that is stored unchanged; the index accepts the same."""


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a file.

    Attributes:
      vectors: [n, dim], numbers as they are in the file.
      fields: Values of the other columns of each row by column, `id` among them.
    """

    vectors: npt.NDArray[Any]
    fields: Sequence[Mapping[str, Any]]


class EmbeddingFile(Protocol):
    """A file of embeddings. Its form is checked when it is opened, its rows when they are read.

    Attributes:
      name: Name for messages.
      rows: Number of rows.
      fingerprint: Fingerprint of the encoder, "" if the file does not state it.
    """

    name: str
    rows: int
    fingerprint: str

    def batches(self) -> Iterator[Batch]:
        """Yields all rows in order.

        Raises:
          UsageError: A row has no vector of the expected dimension, or the file is damaged.
        """
        ...


def at(name: str, row: int) -> str:
    """Returns where a row is, for messages; rows are counted from 0."""
    return f"{name}, row {row}"


def unit_vectors(vectors: npt.NDArray[Any], name: str, first: int) -> tuple[npt.NDArray[np.float32], int]:
    """Returns vectors [n, dim] float32 of length 1, and how many of them had another length.

    Vectors whose length is 1 within NORM_TOLERANCE are unchanged.

    Args:
      name, first: Name of the file, and number of the first row.

    Raises:
      UsageError: A vector has numbers that are not finite, or is zero.
    """
    finite = np.isfinite(vectors)
    if not finite.all():
        row, position = np.argwhere(~finite)[0].tolist()
        raise UsageError(
            f"{at(name, first + row)}: number {position} of the embedding is {vectors[row, position]}; expected finite "
            "numbers: embed the item again or leave it out"
        )
    wide = vectors.astype(np.float64)
    largest = np.abs(wide).max(axis=1, keepdims=True)
    if not largest.all():
        row = int(np.flatnonzero(largest == 0)[0])
        raise UsageError(
            f"{at(name, first + row)}: the embedding is zero, which has no direction; embed the item again or leave "
            "it out"
        )
    scaled = wide / largest  # the squares of very large and very small numbers are not finite
    norms = np.sqrt((scaled * scaled).sum(axis=1))
    lengths = norms * largest[:, 0]
    other = np.abs(lengths - 1) > NORM_TOLERANCE
    if not other.any():
        return vectors.astype(np.float32, copy=False), 0
    units = np.where(other[:, None], scaled / norms[:, None], wide)
    return units.astype(np.float32), int(other.sum())


def to_record(fields: Mapping[str, Any], vector: npt.NDArray[np.float32], where: str) -> EmbeddingRecord:
    """Returns the record of a row.

    Args:
      fields: Values of the row's columns without the embedding. Those that are not columns of every export are
        metadata; they prevail over the same keys of the column `metadata`, unless they are equal, such as 1.0 and 1.
      where: Place of the row, for messages.

    Raises:
      UsageError: A value is missing, has another type than expected, or is not JSON.
    """
    id = fields.get(ID)
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not id:
        raise UsageError(f"{where}: the id is {id!r}; expected a text or an integer")
    texts = {name: fields.get(name) for name in TEXTS}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise UsageError(f"{where}: {name} of {id!r} is {text!r}; expected a text")
    given = fields.get(METADATA)
    try:
        metadata = parse_object(given) if isinstance(given, (str, bytes)) else plain(given or {})
        if not isinstance(metadata, dict):
            raise ValueError(f"{metadata!r} is not an object")
        for name, value in fields.items():
            if name in _COLUMNS or value is None:
                continue
            value = plain(value)
            if value is not None and (name not in metadata or metadata[name] != value):
                metadata[name] = value
        record = EmbeddingRecord(
            id,
            vector,
            texts["uri"] or "",
            texts["content_hash"] or "",
            metadata,
            texts["version"] or "",
            texts["place"] or "",
        )
        record.id.encode()
        if is_too_long(metadata, MAX_METADATA):
            raise ValueError(f"more than {MAX_METADATA} bytes of JSON")
        return record
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: the metadata of {id!r} cannot be stored: {error}; correct or omit it") from None


_COLUMNS = frozenset((ID, EMBEDDING, METADATA, *TEXTS))


def plain(value: Any) -> Any:
    """Returns a value as JSON: dates and times in ISO 8601, decimal numbers as texts, NaN as null.

    Raises:
      ValueError: The value has no JSON form, such as bytes or infinity.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{value} is not JSON")
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise ValueError(f"a value of type {type(value).__name__} has no JSON form")
