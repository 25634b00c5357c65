"""Lists a corpus as a stream of items: the images or texts in folders, globs, archives, lists and tables."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from beam_jobs.corpus.archives import is_archive, list_archive
from beam_jobs.corpus.files import File, describe_file, find_files, local_path
from beam_jobs.corpus.items import Item
from beam_jobs.corpus.patterns import Exclusion
from beam_jobs.corpus.reading import open_file
from beam_jobs.corpus.tables import Row, is_table, read_rows
from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes
from searchforge.image_decoding import RejectedInput

PATH_COLUMNS = ("uri", "path", "file", "image", "file_name", "filename", "filepath", "url")
TEXT_COLUMNS = ("text", "caption", "sentence", "content", "document")
"""Accepted names of the column or key, in any case; the first one present is used."""

_MAX_METADATA_TEXT = 4096
"""Maximum number of bytes of a text that its metadata keeps for display."""

_ROWS_PER_BATCH = 1024
_REQUESTS = 32
"""Number of concurrent lookups of remote files."""


def list_images(source: str, exclusion: Exclusion | None = None) -> Iterator[Item]:
    """Yields every image of a corpus, in no particular order. Images known to be unusable have `reject` set.

    Args:
      source: A folder, a glob, an archive (.tar, .tfrecord), or a list of paths or URIs (plain lines, .csv, .tsv,
        .jsonl); local, gs://, or in any file system that Beam supports. Archives in folders and lists are opened.
      exclusion: Names of files, folders and members of archives to leave out; what a list names is never left out.

    Raises:
      UsageError: The source does not exist, contains a compressed archive, or is a list that is not text or has no
        column of paths.
      JobError: A folder or a bucket cannot be listed.
    """
    exclusion = exclusion or Exclusion()
    found = find_files(source, exclusion)
    if not isinstance(found, File):
        return (item for file in found for item in _images_in(file, {}, exclusion))
    if is_archive(found.path):
        return _images_in(found, {}, exclusion)
    expected = "a folder, a glob, an archive (.tar, .tfrecord) or a list of paths or URIs"
    return _require_readable(_images_in_list(found, exclusion), source, expected)


def list_texts(source: str, exclusion: Exclusion | None = None) -> Iterator[Item]:
    """Yields every text of a corpus, one per line or table row, in no particular order.

    Args:
      source: A file (plain lines, .csv, .tsv, .jsonl), or a folder or glob of such files; local, gs://, or in any file
        system that Beam supports.
      exclusion: Names of files and folders to leave out.

    Raises:
      UsageError, JobError: See `list_images`.
    """
    found = find_files(source, exclusion or Exclusion())
    if isinstance(found, File):
        expected = "a file with one text per line, a CSV, TSV or JSONL file, or a folder of such files"
        # Row numbers alone could equal ids that other rows of the table have.
        prefix = f"{found.id}:" if is_table(found.path) else ""
        return _require_readable(_texts_in(found, prefix), source, expected)
    return (item for file in found for item in _texts_in_member(file))


def _texts_in_member(file: File) -> Iterator[Item]:
    """Yields the texts of one file of a folder; a file that cannot be read becomes a reject."""
    if file.reject:
        yield _rejected_file(file)
        return
    try:
        yield from _texts_in(file, f"{file.id}:")
    except RejectedInput as error:
        yield Item(file.id, file.path, file.path, file.version, file.size).rejected(error)


def _require_readable(items: Iterator[Item], source: str, expected: str) -> Iterator[Item]:
    """Passes items on; raises UsageError if the source itself cannot be read."""
    try:
        yield from items
    except RejectedInput as error:
        raise UsageError(f"corpus {source} cannot be used ({error.detail}); expected {expected}") from None


def _images_in(file: File, metadata: dict[str, object], exclusion: Exclusion) -> Iterator[Item]:
    if file.reject:
        return iter((_rejected_file(file),))
    if is_archive(file.path):
        members = len(file.id) + 1
        items = list_archive(file, metadata)
        return (item for item in items if item.id == file.id or not exclusion.excludes(item.id[members:]))
    return iter((Item(file.id, file.path, file.path, file.version, file.size, None, file.content, metadata),))


def _images_in_list(listing: File, exclusion: Exclusion) -> Iterator[Item]:
    """Yields the images that a list of paths or URIs names."""
    folder = listing.path.rpartition("/")[0] or "/"
    rows = _rows(listing, PATH_COLUMNS)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        while batch := list(itertools.islice(rows, _ROWS_PER_BATCH)):
            paths = [_resolve(folder, row.value) for row in batch]
            remote = [path for path in paths if "://" in path]
            described = dict(zip(remote, pool.map(describe_file, remote), strict=True))
            for row, path in zip(batch, paths, strict=True):
                if row.reject or not row.value or "\0" in row.value:
                    yield _rejected_row(listing, f"{listing.id}:{row.line}", row, "bad_line", "no path or URI")
                else:
                    file = described.get(path) or describe_file(path)
                    yield from _images_in_row(file._replace(id=row.id or row.value), row, exclusion)


def _images_in_row(file: File, row: Row, exclusion: Exclusion) -> Iterator[Item]:
    for item in _images_in(file, row.metadata, exclusion):
        yield replace(item, metadata_error=row.metadata_error) if row.metadata_error else item


def _resolve(folder: str, value: str) -> str:
    """Returns the path or URI that a list in `folder` gives as `value`."""
    value = local_path(value)
    if "://" in value or not value:
        return value
    return f"{folder}/{value}" if "://" in folder else os.path.normpath(os.path.join(folder, value))  # noqa: PTH118


def _rows(file: File, names: tuple[str, ...]) -> Iterator[Row]:
    with open_file(file.path, file.version) as stream:
        yield from read_rows(stream, file.path, names)


def _texts_in(file: File, prefix: str) -> Iterator[Item]:
    """Yields the texts of a file. The id of a text without one is `prefix` and its line number."""
    for row in _rows(file, TEXT_COLUMNS):
        id = row.id or f"{prefix}{row.line}"
        data = row.value.encode()
        if row.reject or not data:
            yield _rejected_row(file, id, row, "empty", "no text")
            continue
        kept = row.value if len(data) <= _MAX_METADATA_TEXT else data[:_MAX_METADATA_TEXT].decode(errors="ignore")
        yield Item(
            id,
            f"{file.path}:{row.line}",
            file.path,
            file.version,
            len(data),
            content=f"sha256:{sha256_bytes(data)}",
            metadata={**row.metadata, "text": kept},
            text=row.value,
            metadata_error=row.metadata_error,
        )


def _rejected_file(file: File) -> Item:
    return Item(file.id, file.path, file.path).rejected(RejectedInput(file.reject, file.detail, file.may_pass))


def _rejected_row(file: File, id: str, row: Row, reason: str, detail: str) -> Item:
    """Returns a reject for a row: for the row's own reason if it has one, else for `reason`."""
    reason, detail = (row.reject, row.detail) if row.reject else (reason, detail)
    return Item(id, f"{file.path}:{row.line}", file.path, file.version, reject=reason, detail=detail)
