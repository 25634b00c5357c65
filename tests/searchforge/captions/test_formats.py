"""All formats of captions files give the same rows and locate faulty ones; files are read incrementally."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from searchforge.captions.formats import MAX_LINE, CaptionRow, Reject, reader_for
from searchforge.errors import UsageError


def _read(path: Path, content: str | bytes | None = None) -> list[CaptionRow | Reject]:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    reader = reader_for(path)
    assert reader
    return list(reader(path))


def _rows(path: Path, content: str | bytes) -> list[tuple[str, str, str | None]]:
    found = _read(path, content)
    assert all(isinstance(item, CaptionRow) for item in found), found
    return [(row.image, row.caption, row.split) for row in found if isinstance(row, CaptionRow)]


def _faults(found: list[CaptionRow | Reject]) -> list[tuple[str, str]]:
    return [(item.place, item.reason) for item in found if isinstance(item, Reject)]


ROWS = [("a.jpg", 'a dog, "Rex", runs', "train"), ("a.jpg", "ein Hündchen 犬", "train"), ("b c.jpg", "x", None)]


@pytest.mark.parametrize("names", [("image", "caption", "split"), ("File_Name", " Text ", "SPLIT")])
def test_every_format_gives_the_same_rows(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, dialect in (("c.csv", "excel"), ("c.tsv", "excel-tab")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, dialect)
            writer.writerow(["other", *names])
            writer.writerows([["-", *(value or "" for value in row)] for row in ROWS])
        assert [(r.image, r.caption, r.split) for r in _read(tmp_path / name) if isinstance(r, CaptionRow)] == ROWS
    keys = [name.strip() for name in names]
    lines = "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in ROWS)
    assert _rows(tmp_path / "c.jsonl", lines) == ROWS
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "split": "train"}, {"id": "2", "file_name": "b c.jpg"}],
        "annotations": [{"image_id": i, "caption": row[1]} for i, row in zip((1, 1, "2"), ROWS, strict=True)],
    }
    assert _rows(tmp_path / "c.json", json.dumps(content)) == ROWS


def test_json_lines_may_contain_several_captions_and_categories(tmp_path: Path) -> None:
    record = {"file_name": "a.jpg", "captions": ["x", "y"], "categories": ["dog", "beach"]}
    found = _read(tmp_path / "c.jsonl", json.dumps(record))
    assert [(r.caption, r.categories) for r in found if isinstance(r, CaptionRow)] == [
        ("x", ("dog", "beach")),
        ("y", ("dog", "beach")),
    ]
    (row,) = _read(tmp_path / "c.csv", "image,caption,categories\na.jpg,x,dog; beach;\n")
    assert isinstance(row, CaptionRow) and row.categories == ("dog", "beach")


@pytest.mark.parametrize("name", ["c.csv", "c.tsv"])
def test_a_table_may_have_several_caption_columns(tmp_path: Path, name: str) -> None:
    lines = ["image,Caption,split,caption,caption ", "a.jpg,x,train,y,z", "b.jpg,,val,v,", "c.jpg,, ,,"]
    text = "\n".join(lines).replace(",", "," if name == "c.csv" else "\t")
    found = _read(tmp_path / name, text)
    assert [(row.image, row.caption, row.split) for row in found if isinstance(row, CaptionRow)] == [
        ("a.jpg", "x", "train"),
        ("a.jpg", "y", "train"),
        ("a.jpg", "z", "train"),
        ("b.jpg", "v", "val"),
    ]
    assert _faults(found) == [(f"{tmp_path / name}:4", "empty_caption")]


@pytest.mark.parametrize(
    "header", ["image,caption,Image", "image,split,caption,split", "image,caption,category,Category"]
)
def test_other_columns_given_twice_are_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(UsageError, match=r"c\.csv have 2 columns '(image|split|category)'; expected one"):
        _read(tmp_path / "c.csv", f"{header}\n")


@pytest.mark.parametrize("caption", ["\u200b", "\ufeff \u200d\u2060", "\u00ad", "\ufe0f", "\u0301"])
def test_a_caption_of_invisible_characters_is_empty(tmp_path: Path, caption: str) -> None:
    record = {"image": "a.jpg", "caption": caption}
    assert _faults(_read(tmp_path / "c.jsonl", json.dumps(record))) == [(f"{tmp_path / 'c.jsonl'}:1", "empty_caption")]
    assert _rows(tmp_path / "c.csv", f"image,caption\na.jpg,{caption}x\n") == [("a.jpg", f"{caption}x", None)]


@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [
        ("c.csv", "image;caption", "semicolons"),
        ("c.csv", "image\tcaption", "tabs"),
        ("c.tsv", "image|caption", "vertical bars"),
        ("c.tsv", "image,caption", "commas"),
    ],
)
def test_another_delimiter_is_named(tmp_path: Path, name: str, header: str, delimiter: str) -> None:
    with pytest.raises(UsageError, match=f"columns are separated by {delimiter}: save it with commas as .csv"):
        _read(tmp_path / name, f"{header}\n")


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl", "c.ndjson"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_windows_line_endings_are_supported(
    tmp_path: Path, name: str, encoding: str, end: str
) -> None:
    lines = {
        "c.csv": ["image,caption", "a.jpg,é x", "", "b.jpg,y"],
        "c.tsv": ["image\tcaption", "a.jpg\té x", "", "b.jpg\ty"],
        "c.jsonl": ['{"image": "a.jpg", "caption": "é x"}', "", '{"image": "b.jpg", "caption": "y"}'],
    }[name.replace("ndjson", "jsonl")]
    assert _rows(tmp_path / name, end.join(lines).encode(encoding)) == [("a.jpg", "é x", None), ("b.jpg", "y", None)]


def test_a_byte_order_mark_before_coco_json_is_supported(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    assert _rows(tmp_path / "c.json", json.dumps(content).encode("utf-8-sig")) == [("a.jpg", "x", None)]


def test_quoted_fields_may_contain_line_breaks(tmp_path: Path) -> None:
    found = _read(tmp_path / "c.csv", 'image,caption\na.jpg,"one\ntwo"\nb.jpg,"x"\nc.jpg,y,z\n')
    assert [(row.caption, row.place[-2:]) for row in found if isinstance(row, CaptionRow)] == [
        ("one two", ":2"),
        ("x", ":4"),
    ]
    assert _faults(found) == [(f"{tmp_path / 'c.csv'}:5", "malformed")]  # the line of the file, not the record


@pytest.mark.parametrize("end", ["", "\n", '\nz.jpg,"well quoted"\n'])
def test_a_stray_quote_affects_only_its_own_row(tmp_path: Path, end: str) -> None:
    lines = ["image,caption", 'a.jpg,"stray', *[f"{i}.jpg,caption {i}" for i in range(500)], 'b.jpg,"Big" dog']
    found = _read(tmp_path / "c.csv", "\n".join(lines) + end)
    kept = [row.image for row in found if isinstance(row, CaptionRow)]
    assert kept == [f"{i}.jpg" for i in range(500)] + (["z.jpg"] if "z.jpg" in end else [])
    assert [place.rpartition(":")[2] for place, _ in _faults(found)] == ["2", "503"]


def test_faulty_rows_are_located_by_file_and_line(tmp_path: Path) -> None:
    content = b"image,caption,split\n" + b"\n".join(
        [
            b"a.jpg,fine,train",
            b"a.jpg,a dog, running,train",
            b"a.jpg",
            b"a.jpg,caf\xe9,train",
            b"a.jpg,   ,train",
            b",x,train",
            b"a.jpg,zero\0byte,train",
            b"b.jpg,fine too,",
        ]
    )
    found = _read(tmp_path / "c.csv", content)
    assert [row.caption for row in found if isinstance(row, CaptionRow)] == ["fine", "fine too"]
    faults = {int(place.rpartition(":")[2]): reason for place, reason in _faults(found)}
    assert faults.pop(8) in ("not_utf8", "malformed")  # the csv module of Python 3.10 rejects zero bytes
    assert faults == {3: "malformed", 4: "malformed", 5: "not_utf8", 6: "empty_caption", 7: "no_image"}


def test_faulty_json_lines_are_located_by_file_and_line(tmp_path: Path) -> None:
    lines: list[Any] = [
        '{"image": "a.jpg", "caption": "fine"}',
        '{"image": "a.jpg", "caption": "cut off',
        "[1, 2]",
        '{"image": "a.jpg", "caption": 5}',
        '{"image": "a.jpg"}',
        '{"image": ["a.jpg"], "caption": "x"}',
        '{"image": "a.jpg", "caption": "\\ud800"}',
        '{"image": "a\\u0000.jpg", "caption": "x"}',
        '{"image": "a.jpg", "caption": "x", "split": 3}',
        '{"image": "a.jpg", "captions": []}',
        '{"image": "a.jpg", "captions": ["x", null]}',
        '{"image": "a.jpg", "caption": "x", "categories": [1]}',
        "[" * 100_000,
    ]
    found = _read(tmp_path / "c.jsonl", "\n".join(lines))
    assert [row.caption for row in found if isinstance(row, CaptionRow)] == ["fine", "x"]
    assert [int(place.rpartition(":")[2]) for place, _ in _faults(found)] == list(range(2, 14))
    assert Counter(reason for _, reason in _faults(found)) == {
        "not_json": 3,
        "not_a_string": 6,
        "no_image": 1,
        "not_utf8": 2,
    }


def test_faulty_coco_entries_are_reported(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, "nonsense", {"id": 2}, {"id": 3, "file_name": "uncaptioned.jpg"}],
        "annotations": [
            {"image_id": 1, "caption": "fine"},
            {"image_id": 9, "caption": "of none"},
            {"image_id": 1},
            7,
            {"image_id": 2, "caption": "of a nameless image"},
            {"image_id": [1], "caption": "x"},
        ],
    }
    found = _read(tmp_path / "c.json", json.dumps(content))
    assert [row.caption for row in found if isinstance(row, CaptionRow)] == ["fine"]
    assert Counter((item.reason, item.captions) for item in found if isinstance(item, Reject)) == {
        ("malformed", 0): 1,
        ("uncaptioned", 0): 1,
        ("unknown_image", 1): 3,
        ("not_a_string", 1): 1,
        ("no_image", 1): 1,
    }


@pytest.mark.parametrize("text", ["[]", "{}", "nonsense", '{"images": 3, "annotations": []}', "[" * 100_000, "\x00"])
def test_other_json_is_rejected(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"c\.json are not"):
        _read(tmp_path / "c.json", text)


@pytest.mark.parametrize("name", ["c.csv", "c.tsv"])
@pytest.mark.parametrize(
    ("text", "message"), [("", "have no header"), ("name;words\na;b\n", "start with 'name;words'")]
)
def test_a_table_without_a_header_is_rejected_with_the_expected_columns(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        _read(tmp_path / name, text)
    assert "image, file_name" in str(raised.value) and "caption, captions" in str(raised.value)


def test_a_utf16_mark_before_other_bytes_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are not UTF-16"):
        _read(tmp_path / "c.csv", b"\xff\xfe" + b"i\0m\0" + b"\x00\xd8")


def test_large_fields_are_read_and_overlong_lines_are_rejected(tmp_path: Path) -> None:
    large = "word " * 200_000
    rows = _rows(tmp_path / "c.csv", f'image,caption\na.jpg,"{large}"\nb.jpg,x\n')
    assert [len(caption) for _, caption, _ in rows] == [len(large) - 1, 1]
    for name, lines in (
        ("d.csv", ["image,caption", "b.jpg,x"]),
        ("d.jsonl", ["", '{"image": "b.jpg", "caption": "x"}']),
    ):
        found = _read(tmp_path / name, "\n".join([lines[0], "x" * (MAX_LINE + 5), lines[1]]))
        assert [row.image for row in found if isinstance(row, CaptionRow)] == ["b.jpg"]
        assert [place for place, _ in _faults(found)] == [f"{tmp_path / name}:2"]


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl"])
def test_a_large_file_is_read_incrementally(tmp_path: Path, name: str) -> None:
    path, caption = tmp_path / name, "x" * 1000
    delimiter = {"c.csv": ",", "c.tsv": "\t"}.get(name)
    line = f"a.jpg{delimiter}{caption}\n" if delimiter else json.dumps({"image": "a.jpg", "caption": caption}) + "\n"
    path.write_text((f"image{delimiter}caption\n" if delimiter else "") + line * 4_000)
    reader = reader_for(path)
    assert reader
    tracemalloc.start()
    try:
        assert sum(1 for _ in reader(path)) == 4_000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    finally:
        tracemalloc.stop()
