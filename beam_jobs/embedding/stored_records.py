"""Reads records from the shards of earlier runs by their byte ranges, of which neighbouring ones are read at once."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor

from beam_jobs.planning.shards import RecordLocation
from searchforge.artifacts.records import TFRECORD_FRAMING, TFRECORD_HEADER, EmbeddingRecord, iterate_tfrecords
from searchforge.errors import JobError
from searchforge.storage.base import Storage

MAX_GAP_BYTES = 64 << 10
"""Largest gap between two records of one read; reading it takes less time than another request."""

MAX_READ_BYTES = 4 << 20
"""Largest number of bytes of one read, unless a single record is larger."""


def read_records(
    storage: Storage, locations: Iterable[RecordLocation], pool: Executor
) -> dict[RecordLocation, EmbeddingRecord]:
    """Reads the records at the given locations, with one task of `pool` for each read.

    Raises:
      JobError: A record is missing or damaged, or its file cannot be read.
    """
    found: dict[RecordLocation, EmbeddingRecord] = {}
    for records in pool.map(lambda span: _read_span(storage, span), _spans(locations)):
        found.update(records)
    return found


def _spans(locations: Iterable[RecordLocation]) -> Iterator[list[RecordLocation]]:
    """Yields groups of locations in the same file to read at once, sorted by offset."""
    span: list[RecordLocation] = []
    for location in sorted(set(locations)):
        if span and not _can_join(span, location):
            yield span
            span = []
        span.append(location)
    if span:
        yield span


def _can_join(span: list[RecordLocation], location: RecordLocation) -> bool:
    first, last = span[0], span[-1]
    return (
        (location.run, location.name) == (first.run, first.name)
        and location.offset - last.offset - last.size <= MAX_GAP_BYTES
        and location.offset + location.size - first.offset <= MAX_READ_BYTES
    )


def _read_span(storage: Storage, span: list[RecordLocation]) -> dict[RecordLocation, EmbeddingRecord]:
    first, last = span[0], span[-1]
    path, start = f"embeddings/{first.run}/{first.name}", first.offset - TFRECORD_HEADER
    size = last.offset - first.offset + last.size + TFRECORD_FRAMING
    try:
        data = storage.read(path, start, size)
        if len(data) < size:
            raise ValueError(f"{len(data)} bytes at byte {start}, expected {size}")
        return {location: _parse(data, location.offset - first.offset, location.size) for location in span}
    except (OSError, ValueError, JobError) as error:
        raise JobError(
            f"records of {storage.root}/{path} cannot be read ({error}); run again, with --set embed.reuse_from=none "
            "if embeddings were deleted or damaged"
        ) from error


def _parse(data: bytes, start: int, size: int) -> EmbeddingRecord:
    """Parses the record whose TFRecord, with a payload of `size` bytes, begins at `start`; verifies its checksums."""
    (payload,) = iterate_tfrecords(io.BytesIO(data[start : start + size + TFRECORD_FRAMING]))
    return EmbeddingRecord.from_bytes(payload)
