"""Reads query logs: texts that people searched for, with counts, as lines of text, CSV or Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from searchforge.errors import UsageError

MAX_QUERY = 4000
"""Characters after which queries are truncated."""

TEXT_NAMES = ("query", "text")
COUNT_NAMES = ("count",)
"""Names of columns of CSV and Parquet files, case-insensitive; the first one present is used."""

_EXPECTED = "expected one query a line, optionally followed by a tab and its count (`red car<TAB>12`)"


def read_query_log(name: str) -> dict[str, float]:
    """Reads a query log.

    A file is CSV with a header (`.csv`) or Parquet (`.parquet`), with a column `query` or `text` and optionally
    `count`; any other file has one query a line, optionally followed by a tab and its count. Text is UTF-8, or UTF-16
    with a byte order mark. Blank queries are ignored. Queries that differ only in case, Unicode form or white space are
    one query, spelled the most frequent way.

    Args:
      name: Path or gs:// URI of the file.

    Returns:
      The count of each query, in the order of the queries.

    Raises:
      UsageError: The file cannot be read, is not of its format, has an invalid count, or contains no query.
      JobError: The bucket cannot be read.
    """
    suffix = Path(name).suffix.lower()
    content = _read(name)
    rows = _table(name, content, suffix) if suffix in (".csv", ".parquet") else _lines(name, content)
    spellings: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for place, text, count in rows:
        query = " ".join(str(text or "").replace("\0", " ").split())[:MAX_QUERY].rstrip()
        if query:
            spellings[normal_form(query)][query] += _count(place, count)
    if not spellings:
        raise UsageError(f"query log {name} contains no query; {_EXPECTED}")
    chosen = {
        min(found, key=lambda spelling: (-found[spelling], spelling)): math.fsum(found.values())
        for found in spellings.values()
    }
    return dict(sorted(chosen.items()))


def normal_form(text: str) -> str:
    """Returns the form that equal queries share: without differences of case, Unicode form and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _read(name: str) -> bytes:
    if name.startswith("gs://"):
        from searchforge.storage import buckets  # takes a second to import

        with buckets.converted_errors(name):
            if buckets.find_object(name) is None:
                raise UsageError(f"query log {name} does not exist; check the name")
            return buckets.read_object(name)
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"query log {name} cannot be read: {error.strerror}; check data.queries (--queries)") from None


def _decoded(name: str, content: bytes) -> str:
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong = f"byte {content[error.start : error.start + 1].hex()}, expected {error.encoding.upper()} text"
        raise UsageError(f"query log {name}, line {line}: {wrong}; save the file as UTF-8") from None


Row = tuple[str, Any, Any]
"""Place for messages, text, and count or None."""


def _lines(name: str, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(_decoded(name, content).splitlines(), 1):
        text, tab, count = line.rstrip().rpartition("\t")
        if number == 1 and text.lower() in TEXT_NAMES and count.lower() in COUNT_NAMES:
            continue  # a header
        yield f"query log {name}, line {number}", text if tab else count, count if tab else None


def _table(name: str, content: bytes, suffix: str) -> Iterator[Row]:
    header, rows = _csv(name, content) if suffix == ".csv" else _parquet(name, content)
    lowered = [column.strip().lower() for column in header]
    text, count = (
        next((lowered.index(known) for known in names if known in lowered), None) for names in (TEXT_NAMES, COUNT_NAMES)
    )
    if text is None:
        raise UsageError(
            f"query log {name} has the columns {', '.join(header)[:200]}; expected a column query or text, and "
            "optionally count"
        )
    for number, row in rows:
        if text < len(row):
            value = row[count] if count is not None and count < len(row) else None
            yield f"query log {name}, row {number}", row[text], value


def _csv(name: str, content: bytes) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    reader = csv.reader(io.StringIO(_decoded(name, content), newline=""))

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UsageError(f"query log {name}, line {reader.line_num}: {error}; expected CSV with a header") from None

    return next(rows(), (0, []))[1], rows()


def _parquet(name: str, content: bytes) -> tuple[list[str], Iterator[tuple[int, list[Any]]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"query log {name} is not a Parquet file: {reason}; name the file after its format") from None
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, enumerate((list(row) for row in zip(*columns, strict=True)), 1)


def _count(place: str, count: Any) -> float:
    if count is None or count == "":
        return 1.0
    try:
        value = float(count)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{place}: the count is {str(count)[:80]!r}, expected a number above 0; {_EXPECTED}")
    return value
