"""Lists a corpus as a stream of items: images or texts, wherever they are and whatever they are packed in.

A corpus is a folder with all below it, a glob, an archive, a list of places, or files with one text a line or row.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from beam_jobs.corpus.archives import is_archive, list_archive
from beam_jobs.corpus.files import File, describe_file, find_files
from beam_jobs.corpus.items import Item
from beam_jobs.corpus.reading import open_file
from beam_jobs.corpus.tables import Row, read_rows
from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes
from searchforge.preprocessing import RejectedInput

PLACE_NAMES = ("uri", "path", "file", "image", "file_name", "filename", "filepath", "url")
TEXT_NAMES = ("text", "caption", "sentence", "content", "document")
"""Names of columns and keys, in any case; the first that is there is used."""

_MAX_SHOWN_TEXT = 4096
"""Bytes of a text that travel with its record, to be shown as a hit."""

_ROWS_AT_ONCE = 1024
_REQUESTS = 32
"""Objects in buckets that are looked up at the same time."""


def list_images(source: str) -> Iterator[Item]:
    """Yields every image of a corpus, in no particular order; what is known to be unusable has the reason.

    Args:
      source: a folder, a glob, a list of places (lines, .csv, .tsv, .jsonl) or an archive (.tar, .tfrecord); local,
        gs:// or where Beam can list. Archives are opened wherever they lie.

    Raises:
      UsageError: it does not exist, holds a compressed archive or a file name that is not UTF-8, or it is a list that
        is not text or has no column of places.
      JobError: a folder or a bucket cannot be listed.
    """
    found = find_files(source)
    if not isinstance(found, File):
        return (item for file in found for item in _images_of(file, {}))
    if is_archive(found.path):
        return list_archive(found, {})
    return _usable(_listed(found), source, "a folder, a glob, an archive (.tar, .tfrecord), a list of paths or URIs")


def list_texts(source: str) -> Iterator[Item]:
    """Yields every text of a corpus, each line of a file or row of a table, in no particular order.

    Args:
      source: a file (lines, .csv, .tsv, .jsonl), a folder or a glob of such files; local, gs:// or where Beam can list.

    Raises:
      UsageError, JobError: as of `list_images`.
    """
    found = find_files(source)
    if isinstance(found, File):
        return _usable(
            _texts_of(found, ""), source, "a file with one text a line, CSV, TSV, JSONL, or a folder of such"
        )
    return (item for file in found for item in _some_texts(file))


def _some_texts(file: File) -> Iterator[Item]:
    try:
        yield from _texts_of(file, f"{file.id}:")
    except RejectedInput as error:
        detail = error.detail
        yield Item(file.id, file.path, file.path, file.version, file.size, reject=error.reason, detail=detail)


def _usable(items: Iterator[Item], source: str, expected: str) -> Iterator[Item]:
    """Passes items on; that the source itself cannot be read is an error."""
    try:
        yield from items
    except RejectedInput as error:
        raise UsageError(f"corpus {source} cannot be used ({error.detail}); expected {expected}") from None


def _images_of(file: File, metadata: dict[str, object]) -> Iterator[Item]:
    if is_archive(file.path):
        return list_archive(file, metadata)
    return iter((Item(file.id, file.path, file.path, file.version, file.size, None, file.content, metadata),))


def _listed(listing: File) -> Iterator[Item]:
    """Yields the images that a list names."""
    folder = listing.path.rpartition("/")[0] or "/"
    rows = _rows(listing, PLACE_NAMES)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            places = [_place(folder, row.value) for row in batch]
            remote = [place for place in places if "://" in place]
            described = dict(zip(remote, pool.map(describe_file, remote), strict=True))
            for row, place in zip(batch, places, strict=True):
                if row.reject or not row.value or "\0" in row.value:
                    yield _bad_row(listing, f"{listing.id}:{row.line}", row, "bad_line", "no place of an image")
                else:
                    file = described.get(place) or describe_file(place)
                    yield from _images_of(file._replace(id=row.id or row.value), row.metadata)


def _place(folder: str, value: str) -> str:
    if "://" in value or not value:
        return value
    return f"{folder}/{value}" if "://" in folder else os.path.normpath(os.path.join(folder, value))  # noqa: PTH118


def _rows(file: File, names: tuple[str, ...]) -> Iterator[Row]:
    with open_file(file.path, file.version) as stream:
        yield from read_rows(stream, file.path, names)


def _texts_of(file: File, prefix: str) -> Iterator[Item]:
    """Yields the texts of a file; without an id of their own they have the line's number after `prefix`."""
    for row in _rows(file, TEXT_NAMES):
        id = row.id or f"{prefix}{row.line}"
        data = row.value.encode()
        if row.reject or not data:
            yield _bad_row(file, id, row, "empty", "no text")
            continue
        shown = row.value if len(data) <= _MAX_SHOWN_TEXT else data[:_MAX_SHOWN_TEXT].decode(errors="ignore")
        yield Item(
            id,
            f"{file.path}:{row.line}",
            file.path,
            file.version,
            len(data),
            content=f"sha256:{sha256_bytes(data)}",
            metadata={**row.metadata, "text": shown},
            text=row.value,
        )


def _bad_row(file: File, id: str, row: Row, reason: str, detail: str) -> Item:
    """Rejects a row for its own fault, or else for `reason`."""
    reason, detail = (row.reject, row.detail) if row.reject else (reason, detail)
    return Item(id, f"{file.path}:{row.line}", file.path, file.version, reject=reason, detail=detail)
