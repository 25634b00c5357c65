"""Reads the rows of lists and text corpora: plain lines, CSV, TSV and JSON Lines, all in UTF-8.

In every format, a row has one value (a path, a URI or a text), an optional id, and metadata, which is everything else.
A malformed row is yielded as a reject; only a file that is unusable as a whole is an error.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from beam_jobs.corpus.metadata import MAX_METADATA, is_too_long, parse_object
from searchforge.captions.formats import MAX_LINE, csv_records, delimiter_advice, tsv_records
from searchforge.errors import UsageError
from searchforge.image_decoding import RejectedInput


class Row(NamedTuple):
    """One row.

    Attributes:
      line: Line number, from 1; of the first line if a record spans several.
      value: The path, URI or text; empty if the row has none.
      id: The row's id, or None.
      metadata: The row's other columns or keys.
      metadata_error: Why `metadata` is empty although the row has other columns; else empty.
      reject: Reason why the row cannot be used; else empty.
      detail: Human-readable details of the reject.
    """

    line: int
    value: str
    id: str | None = None
    metadata: dict[str, Any] = {}  # noqa: RUF012 (never mutated)
    reject: str = ""
    detail: str = ""
    metadata_error: str = ""


_TABLES = ("csv", "tsv", "jsonl", "ndjson")


def is_table(path: str) -> bool:
    """Returns whether a file, judging by its extension, is a table, whose rows can have ids of their own."""
    return path.lower().rpartition(".")[2] in _TABLES


def read_rows(stream: BinaryIO, path: str, names: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of an open file, skipping blank lines.

    Args:
      path: Path for error messages; its extension determines the format: .csv, .tsv, .jsonl or .ndjson, else plain
        lines.
      names: Accepted names of the value's column or key, in any case; the first one present is used.

    Raises:
      RejectedInput: The first line is not UTF-8 (`not_text`).
      UsageError: A table's header has none of these columns.
    """
    lines = _lines(stream)
    suffix = path.lower().rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        return _table(path, csv_records(lines) if suffix == "csv" else tsv_records(lines), names)
    if suffix in ("jsonl", "ndjson"):
        return _json_lines(lines, names)
    return _plain_lines(lines)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """Yields numbered lines, None for one that exceeds MAX_LINE bytes. Invalid UTF-8 becomes lone surrogates."""
    number = 0
    while line := stream.readline(MAX_LINE):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if b"\0" in line or not _is_utf8(line):
                raise RejectedInput("not_text", "the first line is not UTF-8 text")
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        text = line.decode(errors="surrogateescape")
        yield number, f"{text[:-2]}\n" if text.endswith("\r\n") else text


def _is_utf8(line: bytes) -> bool:
    try:
        codecs.utf_8_decode(line, "strict", line.endswith(b"\n"))  # a long line may be cut inside a character
    except UnicodeDecodeError:
        return False
    return True


def _plain_lines(lines: Iterator[tuple[int, str | None]]) -> Iterator[Row]:
    for number, line in lines:
        if line is None:
            yield _too_long(number)
        elif value := line.strip():
            yield _require_utf8(Row(number, value), value)


def _json_lines(lines: Iterator[tuple[int, str | None]], names: Sequence[str]) -> Iterator[Row]:
    for number, line in lines:
        if line is None:
            yield _too_long(number)
            continue
        if not line.strip():
            continue
        try:
            line.encode()
            values = parse_object(line)
        except ValueError as error:
            yield Row(number, "", reject="bad_line", detail=_not_utf8(error) or f"not JSON: {error}")
            continue
        keys = {key.lower(): key for key in values}
        key = next((keys[name] for name in names if name in keys), None)
        value = values.pop(key) if key is not None else ""
        given = values.pop("id" if "id" in values else keys.get("id", "id"), None)
        if not isinstance(value, str | None):
            yield Row(number, "", reject="bad_line", detail=f"{key!r} is {_abbreviated(value)}, expected a string")
        elif isinstance(given, bool) or not isinstance(given, str | int | None):
            yield Row(
                number, "", reject="bad_line", detail=f"'id' is {_abbreviated(given)}, expected a string or a number"
            )
        else:
            yield _row(number, value or "", "" if given is None else str(given), values, len(line))


def _table(path: str, records: Iterator[tuple[int, list[str] | str]], names: Sequence[str]) -> Iterator[Row]:
    _, header = next(records, (0, None))
    if header is None:
        return
    if isinstance(header, str):
        raise UsageError(f"{path} has no header ({header}); expected one with a column {' or '.join(names)}")
    columns = [name.strip() for name in header]
    lower = [name.lower() for name in columns]
    column = next((lower.index(name) for name in names if name in lower), None)
    if column is None:
        found = ", ".join(map(_abbreviated, columns[:20]))
        raise UsageError(
            f"{path} has the columns {found}; expected one of {', '.join(names)}{delimiter_advice(header)}"
        )
    duplicate = next((name for index, name in enumerate(columns) if lower[index] in lower[:index]), None)
    if duplicate is not None:
        raise UsageError(f"{path} has two columns {duplicate!r}; rename one of them")
    id_column = lower.index("id") if "id" in lower else None
    others = [(index, name) for index, name in enumerate(columns) if index not in (column, id_column)]
    for number, fields in records:
        if isinstance(fields, str):
            yield Row(number, "", reject="bad_line", detail=fields)
        elif len(fields) != len(columns):
            detail = f"{len(fields)} fields, expected {len(columns)}; quote fields that contain the delimiter"
            yield Row(number, "", reject="bad_line", detail=detail)
        else:
            id = fields[id_column].strip() if id_column is not None else ""
            metadata = {name: fields[index] for index, name in others}
            yield _row(number, fields[column].strip(), id, metadata, sum(map(len, fields)), "".join(fields))


def _row(line: int, value: str, id: str, metadata: dict[str, Any], length: int, raw: str = "") -> Row:
    row = _require_utf8(Row(line, value, id or None, metadata), raw)
    if row.metadata and is_too_long(row.metadata, length):
        return row._replace(metadata={}, metadata_error=f"more than {MAX_METADATA} bytes")
    return row


def _require_utf8(row: Row, raw: str) -> Row:
    """Returns the row, or a reject if its raw text was not UTF-8."""
    if raw.isascii():
        return row
    try:
        raw.encode()
    except ValueError as error:
        return Row(row.line, "", reject="bad_line", detail=_not_utf8(error))
    return row


def _not_utf8(error: ValueError) -> str:
    return "not UTF-8; save the file as UTF-8" if isinstance(error, UnicodeEncodeError) else ""


def _too_long(line: int) -> Row:
    return Row(line, "", reject="bad_line", detail=f"more than {MAX_LINE} bytes")


def _abbreviated(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
