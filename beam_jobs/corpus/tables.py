"""Rows of lists and text corpora: plain lines, CSV, TSV and JSON Lines.

Whatever the format, a row has one value (a place, or a text), perhaps an id, and metadata: everything else. Faults of
single rows are yielded in their place; only a file that is of no use at all is an error. Text is UTF-8.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from beam_jobs.corpus.metadata import MAX_METADATA, is_too_long, parse_object
from searchforge.captions.formats import MAX_LINE, csv_records, tsv_records
from searchforge.errors import UsageError
from searchforge.preprocessing import RejectedInput


class Row(NamedTuple):
    """One row.

    Attributes:
      line: its number in the file, from 1; of a record over several lines the first.
      value: the place or the text; empty where the row has none.
      id: as given, or None.
      metadata: the row's other columns or keys.
      reject: reason why the row cannot be used, else empty; detail: what was found.
    """

    line: int
    value: str
    id: str | None = None
    metadata: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    reject: str = ""
    detail: str = ""


def read_rows(stream: BinaryIO, path: str, names: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of an open file; blank lines are skipped.

    Args:
      path: is named in errors; its extension tells the format: .csv, .tsv, .jsonl; anything else is plain lines.
      names: columns or keys that may hold the value, in any case; the first that is there is used.

    Raises:
      RejectedInput: `not_text`: the first line is not UTF-8, so the file is something else.
      UsageError: a table's header has no such column.
    """
    lines = _lines(stream)
    suffix = path.lower().rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        return _table(path, csv_records(lines) if suffix == "csv" else tsv_records(lines), names)
    if suffix in ("jsonl", "ndjson"):
        return _json_lines(lines, names)
    return _plain_lines(lines)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """Yields numbered lines; None for one of MAX_LINE bytes. What is not UTF-8 becomes lone surrogates."""
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
        codecs.utf_8_decode(line, "strict", line.endswith(b"\n"))  # a long line may be cut within a character
    except UnicodeDecodeError:
        return False
    return True


def _plain_lines(lines: Iterator[tuple[int, str | None]]) -> Iterator[Row]:
    for number, line in lines:
        if line is None:
            yield _too_long(number)
        elif value := line.strip():
            yield _checked(Row(number, value), value)


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
            yield Row(number, "", reject="bad_line", detail=f"{key!r} is {_shown(value)}, expected a string")
        elif isinstance(given, bool) or not isinstance(given, str | int | None):
            yield Row(number, "", reject="bad_line", detail=f"'id' is {_shown(given)}, expected a string or a number")
        else:
            yield _row(number, value or "", "" if given is None else str(given), values, len(line))


def _table(path: str, records: Iterator[tuple[int, list[str] | str]], names: Sequence[str]) -> Iterator[Row]:
    _, header = next(records, (0, None))
    if header is None:
        return
    if isinstance(header, str):
        raise UsageError(f"{path} has no header ({header}); expected a column {_one_of(names)}")
    columns = [name.strip() for name in header]
    lower = [name.lower() for name in columns]
    column = next((lower.index(name) for name in names if name in lower), None)
    if column is None:
        found = ", ".join(map(_shown, columns[:20]))
        raise UsageError(f"{path} has the columns {found}; expected one of {_one_of(names)}")
    double = next((name for index, name in enumerate(columns) if lower[index] in lower[:index]), None)
    if double is not None:
        raise UsageError(f"{path} has two columns {double!r}; rename one of them")
    id_column = lower.index("id") if "id" in lower else None
    others = [(index, name) for index, name in enumerate(columns) if index not in (column, id_column)]
    for number, fields in records:
        if isinstance(fields, str):
            yield Row(number, "", reject="bad_line", detail=fields)
        elif len(fields) != len(columns):
            detail = f"{len(fields)} fields, expected {len(columns)}; a field with the delimiter in it needs quotes"
            yield Row(number, "", reject="bad_line", detail=detail)
        else:
            id = fields[id_column].strip() if id_column is not None else ""
            metadata = {name: fields[index] for index, name in others}
            yield _row(number, fields[column].strip(), id, metadata, sum(map(len, fields)), "".join(fields))


def _row(line: int, value: str, id: str, metadata: dict[str, Any], length: int, raw: str = "") -> Row:
    row = _checked(Row(line, value, id or None, metadata), raw)
    if row.metadata and is_too_long(row.metadata, length):
        return Row(line, value, row.id, reject="bad_metadata", detail=f"more than {MAX_METADATA} bytes")
    return row


def _checked(row: Row, raw: str) -> Row:
    """Rejects a row that was not UTF-8."""
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


def _one_of(names: Sequence[str]) -> str:
    return ", ".join(names)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
