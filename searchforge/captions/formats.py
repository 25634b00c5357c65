"""Captions files as rows of (image, caption, split, categories): COCO-captions JSON, CSV, TSV and JSON Lines.

Faults of single rows are yielded in their place, with file and line; only a file that is of no use at all is an error.
CSV is that of RFC 4180 (quoted fields may hold commas and line breaks); TSV is split at every tab. Both begin with a
header. Text is UTF-8, or UTF-16 with a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchforge.errors import UsageError

IMAGE_NAMES = ("image", "file_name", "filename", "filepath", "path")
CAPTION_NAMES = ("caption", "captions", "text", "title")
SPLIT_NAMES = ("split",)
CATEGORY_NAMES = ("categories", "category")
"""Names of columns and keys, in any case; the first that is there is used."""

MAX_LINE = 2**24
"""Characters; a longer line is no row of captions."""

MAX_RECORD_LINES = 100
"""A quoted CSV field that is not closed within as many lines was not meant to be quoted."""


@dataclass(frozen=True)
class Row:
    """One caption of one image.

    Attributes:
      place: file and line, for people.
      image: file name as the file gives it; not empty.
      caption: not empty; white space is single spaces.
      split: as given, or None.
      categories: of the image, where the file has them.
    """

    place: str
    image: str
    caption: str
    split: str | None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reject:
    """What cannot be used.

    Attributes:
      place: file and line, for people.
      reason: one word for the kind of fault.
      detail: what was found.
      captions: how many captions are lost by it.
    """

    place: str
    reason: str
    detail: str
    captions: int = 1


Found = Iterator[Row | Reject]


def reader_of(path: Path) -> Callable[[Path], Found] | None:
    """Returns the reader for a file's extension, or None."""
    return READERS.get(path.suffix.lower())


def make_row(place: str, image: Any, caption: Any, split: Any, categories: Any = None) -> Row | Reject:
    """Checks what a file gives for a row; `categories` may be one string, with semicolons between, or a list."""
    if categories is None or isinstance(categories, str):
        categories = (categories or "").split(";")
    if not isinstance(image, str) or not image.strip():
        return Reject(place, "no_image", f"the image is {_shown(image)}, expected a file name")
    if not isinstance(caption, str):
        return Reject(place, "not_a_string", f"the caption is {_shown(caption)}, expected a string")
    if not (split is None or isinstance(split, str)):
        return Reject(place, "not_a_string", f"the split is {_shown(split)}, expected a string")
    if not (isinstance(categories, list) and all(isinstance(category, str) for category in categories)):
        return Reject(place, "not_a_string", f"the categories are {_shown(categories)}, expected strings")
    for text in (image, caption, split or "", *categories):
        if "\0" in text or not _encodable(text):
            return Reject(place, "not_utf8", f"{_shown(text)} is not UTF-8 text; save the file as UTF-8")
    words = " ".join(caption.split())
    if not words:
        return Reject(place, "empty_caption", f"of image {_shown(image)}")
    kinds = dict.fromkeys(category.strip() for category in categories if category.strip())
    return Row(place, image, words, (split or "").strip() or None, tuple(kinds))


def read_json_lines(path: Path, place_key: str | None = None) -> Found:
    """Reads objects with an image and a caption or a list of captions, one a line.

    Args:
      place_key: key of the row's origin, in files that searchforge made from others; such a row may hold a `problem`
        instead of an image.
    """
    for number, line in _lines(path):
        place = f"{path}:{number}"
        if line is None:
            yield Reject(place, "too_long", f"more than {MAX_LINE} characters")
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Reject(place, "not_json", str(error))
            continue
        if not isinstance(record, dict):
            yield Reject(place, "not_json", f"{_shown(record)}, expected an object")
            continue
        if place_key:
            place = record.pop(place_key)
            if "problem" in record:
                yield Reject(place, "malformed", record["problem"])
                continue
        values = {key.lower(): value for key, value in record.items()}
        image, captions, split, categories = (
            next((values[name] for name in names if name in values), None)
            for names in (IMAGE_NAMES, CAPTION_NAMES, SPLIT_NAMES, CATEGORY_NAMES)
        )
        for caption in captions if isinstance(captions, list) and captions else [captions]:
            yield make_row(place, image, caption, split, categories)


def _read_coco(path: Path) -> Found:
    """Reads https://cocodataset.org/#format-data, 4. Image Captioning; an image may carry `split` and `categories`."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"captions {path} are not JSON: {error}") from None
    listed = content.get("images") if isinstance(content, dict) else None
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not isinstance(annotations, list):
        raise UsageError(
            f"captions {path} are not COCO captions; "
            'expected {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
        )
    images: dict[int | str, tuple[Any, Any, Any]] = {}
    captioned, ambiguous = set(), set()
    for index, image in enumerate(listed):
        key = image.get("id") if isinstance(image, dict) else None
        if not isinstance(key, int | str):
            yield Reject(f"{path}: images[{index}]", "malformed", f"{_shown(image)} has no id", captions=0)
            continue
        if key in images and images[key][0] != image.get("file_name"):
            ambiguous.add(key)
        images[key] = image.get("file_name"), image.get("split"), image.get("categories")
    for index, annotation in enumerate(annotations):
        place = f"{path}: annotations[{index}]"
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(key, int | str) or key not in images:
            yield Reject(place, "unknown_image", f"image_id {_shown(key)} is not among the images")
            continue
        captioned.add(key)
        if key in ambiguous:
            yield Reject(place, "unknown_image", f"image_id {_shown(key)} is that of several images")
            continue
        name, split, categories = images[key]
        yield make_row(place, name, annotation.get("caption"), split, categories)
    for key in (key for key in images if key not in captioned):
        yield Reject(f"{path}: image id {key!r}", "uncaptioned", _shown(images[key][0]), captions=0)


def _read_csv(path: Path) -> Found:
    return _table(path, csv_records(_lines(path)))


def _read_tsv(path: Path) -> Found:
    return _table(path, tsv_records(_lines(path)))


_TOO_LONG = f"more than {MAX_LINE} characters"


def _table(path: Path, records: Iterator[tuple[int, list[str] | str]]) -> Found:
    """Turns numbered records, each a list of fields or the description of a fault, into rows."""
    _, header = next(records, (0, ""))
    if not isinstance(header, list):
        raise UsageError(f"captions {path} hold no header; expected {_HEADER}")
    names = [name.strip().lower() for name in header]
    image, caption, split, categories = (
        next((names.index(name) for name in known if name in names), None)
        for known in (IMAGE_NAMES, CAPTION_NAMES, SPLIT_NAMES, CATEGORY_NAMES)
    )
    if image is None or caption is None:
        found = ", ".join(map(_shown, header[:10]))
        raise UsageError(f"captions {path} begin with {found}; expected {_HEADER}")
    for number, fields in records:
        place = f"{path}:{number}"
        if isinstance(fields, str):
            yield Reject(place, "malformed", fields)
        elif len(fields) != len(header):
            detail = f"{len(fields)} fields, expected {len(header)}; a field with the delimiter in it needs quotes"
            yield Reject(place, "malformed", detail)
        else:
            optional = (None if column is None else fields[column] for column in (split, categories))
            yield make_row(place, fields[image], fields[caption], *optional)


_HEADER = (
    f"a header with an image column ({', '.join(IMAGE_NAMES)}), a caption column ({', '.join(CAPTION_NAMES)}) "
    "and perhaps split and categories"
)


def tsv_records(lines: Iterator[tuple[int, str | None]]) -> Iterator[tuple[int, list[str] | str]]:
    """Splits lines as https://www.iana.org/assignments/media-types/text/tab-separated-values; quotes are taken off."""
    for number, line in lines:
        if line is None:
            yield number, _TOO_LONG
        elif line.strip():
            yield number, [_unquoted(field) for field in line.removesuffix("\n").split("\t")]


def csv_records(lines: Iterator[tuple[int, str | None]]) -> Iterator[tuple[int, list[str] | str]]:
    """Yields records with the number of their first line.

    A quote that is opened by mistake would swallow the lines after it: they are read again.
    """
    csv.field_size_limit(MAX_LINE * MAX_RECORD_LINES)  # a limit of the process; the default is 131,072
    again: deque[tuple[int, str | None]] = deque()
    taken: list[tuple[int, str | None]] = []

    def feed() -> Iterator[str]:
        while item := again.popleft() if again else next(lines, None):
            taken.append(item)
            if item[1] is None:
                raise csv.Error(_TOO_LONG)
            if len(taken) > MAX_RECORD_LINES:
                raise csv.Error(f"a quote is not closed within {MAX_RECORD_LINES} lines")
            yield item[1]

    reader = csv.reader(feed(), strict=True)
    while True:
        taken.clear()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            again.extendleft(reversed(taken[1:]))
            yield taken[0][0], str(error)
            reader = csv.reader(feed(), strict=True)
            continue
        if fields is None:
            return
        if fields:
            yield taken[0][0], fields


def _lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Yields numbered lines; None for one that is too long. What is not UTF-8 becomes lone surrogates."""
    with path.open("rb") as file:
        utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding, errors = ("utf-16", "strict") if utf16 else ("utf-8-sig", "surrogateescape")
    try:
        with path.open(encoding=encoding, errors=errors) as file:
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) < MAX_LINE or line.endswith("\n"):
                    yield number, line
                    continue
                while (rest := file.readline(MAX_LINE)) and not rest.endswith("\n"):
                    pass
                yield number, None
    except UnicodeDecodeError as error:
        raise UsageError(f"captions {path} are not UTF-16, as their first bytes say: {error}; save as UTF-8") from None


def _unquoted(field: str) -> str:
    if len(field) > 1 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"')
    return field


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


READERS: dict[str, Callable[[Path], Found]] = {
    ".json": _read_coco,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": read_json_lines,
}
"""By extension."""
