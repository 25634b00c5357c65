"""Query logs are read as lines, CSV or Parquet; faults are reported with their place and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchforge.config import load_config
from searchforge.errors import UsageError
from searchforge.queries.query_log import read_query_log


def _log(folder: Path, content: bytes, name: str = "queries.txt") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        b"red car\t12\nblue boat\n",
        b"\xef\xbb\xbfred car\t12\r\n\r\nblue boat\r\n",
        "red car\t12\nblue boat".encode("utf-16"),
        b"\n  red   car \t12\n\t\nblue boat\t1\n",
        b"query\tcount\nred car\t12\nblue boat\t1\n",
        b"red car\t5\nRED CAR\t7\nblue boat\nblue \xe2\x80\x83boat\t1e-9\n".replace(b"\t1e-9", b"\t0.000000000001"),
    ],
)
def test_lines_with_counts(tmp_path: Path, content: bytes) -> None:
    found = read_query_log(_log(tmp_path, content))
    assert {text.lower(): round(count, 6) for text, count in found.items()} == {"blue boat": 1.0, "red car": 12.0}


def test_equal_queries_are_counted_once_in_their_most_frequent_spelling(tmp_path: Path) -> None:
    log = "Caf\u00e9\t2\ncafe\u0301\t1\ncaf\u00e9\t4\n"
    assert read_query_log(_log(tmp_path, log.encode())) == {"caf\u00e9": 7.0}


def test_tables_need_a_text_column_and_may_have_counts(tmp_path: Path) -> None:
    assert read_query_log(_log(tmp_path, b'Query,count\n"red, old car",3\nboat,\n', "log.csv")) == {
        "boat": 1.0,
        "red, old car": 3.0,
    }
    pq.write_table(pa.table({"text": ["red car", "boat", None], "count": [3, 4, 1]}), tmp_path / "log.parquet")
    assert read_query_log(str(tmp_path / "log.parquet")) == {"boat": 4.0, "red car": 3.0}
    pq.write_table(pa.table({"text": ["red car", "boat"]}), tmp_path / "plain.parquet")
    assert read_query_log(str(tmp_path / "plain.parquet")) == {"boat": 1.0, "red car": 1.0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "contains no query; expected one query a line"),
        ("a.txt", b"\n \r\n\t\n", "contains no query"),
        ("a.txt", b"red car\nbl\xffue\n", "line 2: byte ff, expected UTF-8 text; save the file as UTF-8"),
        ("a.txt", b"red car\t3\nblue\tmany\n", "line 2: the count is 'many', expected a number above 0"),
        ("a.txt", b"red car\t-3\n", "line 1: the count is '-3', expected a number above 0"),
        ("a.txt", b"red car\tnan\n", "line 1: the count is 'nan'"),
        ("a.csv", b"word,n\nred,3\n", "has the columns word, n; expected a column query or text"),
        ("a.csv", b"query,count\nred,x\n", "row 2: the count is 'x'"),
        ("a.parquet", b"red car\n", "is not a Parquet file"),
    ],
)
def test_an_unusable_log_is_refused_when_the_configuration_is_read(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    log = _log(tmp_path, content, name)
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        load_config(None, {"data.queries": log})
    assert log in str(error.value)


def test_a_missing_log_is_refused_and_paths_are_relative_to_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "searchforge.yaml"
    config.write_text("data: {queries: log.txt}\n")
    with pytest.raises(UsageError, match=r"log\.txt cannot be read: No such file or directory; check data\.queries"):
        load_config(config)
    _log(tmp_path, b"red car\n", "log.txt")
    assert load_config(config).data.queries == str(tmp_path / "log.txt")
