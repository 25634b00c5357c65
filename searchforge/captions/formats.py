"""Readers of captions files: COCO captions JSON, CSV, TSV and JSON Lines.

Faulty rows are yielded as rejects, with file and line; only a file that is unusable as a whole raises an error. CSV
follows RFC 4180 (quoted fields may contain commas and line breaks); TSV is split at every tab. Both start with a
header. Text is UTF-8, or UTF-16 with a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import json
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchforge.errors import UsageError

IMAGE_NAMES = ("image", "file_name", "filename", "filepath", "path")
CAPTION_NAMES = ("caption", "captions", "text", "title")
SPLIT_NAMES = ("split",)
CATEGORY_NAMES = ("categories", "category")
"""Names of columns and keys, case-insensitive; the first one present is used."""

_INVISIBLE = ("Cc", "Cf", "Me", "Mn", "Zl", "Zp", "Zs")
"""Unicode categories: control and format characters, combining marks and separators."""

MAX_LINE = 2**24
"""Largest length of a line, in characters."""

MAX_RECORD_LINES = 100
"""Number of lines within which a quoted CSV field must be closed."""


@dataclass(frozen=True)
class CaptionRow:
    """One caption of one image.

    Attributes:
      place: File and line, for messages.
      image: File name as in the captions file; not empty.
      caption: Non-empty text with white space collapsed to single spaces.
      split: Split of the image, or None.
      categories: Categories of the image, if any.
    """

    place: str
    image: str
    caption: str
    split: str | None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reject:
    """An unusable part of a captions file.

    Attributes:
      place: File and line, for messages.
      reason: Kind of the fault, as an identifier.
      detail: Description of the fault.
      captions: Number of captions lost.
    """

    place: str
    reason: str
    detail: str
    captions: int = 1


CaptionRows = Iterator[CaptionRow | Reject]


def reader_for(path: Path) -> Callable[[Path], CaptionRows] | None:
    """Returns the reader for a file's extension, or None."""
    return READERS.get(path.suffix.lower())


def make_row(place: str, image: Any, caption: Any, split: Any, categories: Any = None) -> CaptionRow | Reject:
    """Validates the values of a row; `categories` is a list, or a string separated by semicolons."""
    if categories is None or isinstance(categories, str):
        categories = (categories or "").split(";")
    if not isinstance(image, str) or not image.strip():
        return Reject(place, "no_image", f"the image is {_abbreviated(image)}; expected a file name")
    if not isinstance(caption, str):
        return Reject(place, "not_a_string", f"the caption is {_abbreviated(caption)}; expected a string")
    if not (split is None or isinstance(split, str)):
        return Reject(place, "not_a_string", f"the split is {_abbreviated(split)}; expected a string")
    if not (isinstance(categories, list) and all(isinstance(category, str) for category in categories)):
        return Reject(place, "not_a_string", f"the categories are {_abbreviated(categories)}; expected strings")
    for text in (image, caption, split or "", *categories):
        if "\0" in text or not _encodable(text):
            return Reject(place, "not_utf8", f"{_abbreviated(text)} is not UTF-8 text; save the file as UTF-8")
    words = " ".join(caption.split())
    if not is_visible(words):
        return Reject(place, "empty_caption", f"the caption of image {_abbreviated(image)} is empty")
    kinds = dict.fromkeys(category.strip() for category in categories if category.strip())
    return CaptionRow(place, image, words, (split or "").strip() or None, tuple(kinds))


def is_visible(text: str) -> bool:
    """Returns whether a text has more than white space, zero-width characters and combining marks."""
    return any(unicodedata.category(character) not in _INVISIBLE for character in text)


def read_json_lines(path: Path, place_key: str | None = None) -> CaptionRows:
    """Reads JSON objects, one per line, with an image and a caption or a list of captions.

    Args:
      place_key: Key of the row's origin, in files that searchforge converted from others; such a row may contain a
        `problem` instead of an image.
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
            yield Reject(place, "not_json", f"{_abbreviated(record)}; expected an object")
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


def _read_coco(path: Path) -> CaptionRows:
    """Reads https://cocodataset.org/#format-data, 4. Image Captioning; images may have `split` and `categories`."""
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
            yield Reject(f"{path}: images[{index}]", "malformed", f"{_abbreviated(image)} has no id", captions=0)
            continue
        if key in images and images[key][0] != image.get("file_name"):
            ambiguous.add(key)
        images[key] = image.get("file_name"), image.get("split"), image.get("categories")
    for index, annotation in enumerate(annotations):
        place = f"{path}: annotations[{index}]"
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(key, int | str) or key not in images:
            yield Reject(place, "unknown_image", f"image_id {_abbreviated(key)} is not among the images")
            continue
        captioned.add(key)
        if key in ambiguous:
            yield Reject(place, "unknown_image", f"image_id {_abbreviated(key)} belongs to several images")
            continue
        name, split, categories = images[key]
        yield make_row(place, name, annotation.get("caption"), split, categories)
    for key in (key for key in images if key not in captioned):
        yield Reject(f"{path}: image id {key!r}", "uncaptioned", _abbreviated(images[key][0]), captions=0)


def _read_csv(path: Path) -> CaptionRows:
    return _table(path, csv_records(_lines(path)))


def _read_tsv(path: Path) -> CaptionRows:
    return _table(path, tsv_records(_lines(path)))


_TOO_LONG = f"more than {MAX_LINE} characters"


def _table(path: Path, records: Iterator[tuple[int, list[str] | str]]) -> CaptionRows:
    """Converts numbered records, each a list of fields or a fault, to rows."""
    _, header = next(records, (0, ""))
    if not isinstance(header, list):
        raise UsageError(f"captions {path} have no header; expected {_HEADER}")
    names = [name.strip().lower() for name in header]
    image, caption, split, categories = (
        next((names.index(name) for name in known if name in names), None)
        for known in (IMAGE_NAMES, CAPTION_NAMES, SPLIT_NAMES, CATEGORY_NAMES)
    )
    if image is None or caption is None:
        found = ", ".join(map(_abbreviated, header[:10]))
        raise UsageError(f"captions {path} start with {found}; expected {_HEADER}{delimiter_advice(header)}")
    for column in (image, split, categories):
        if column is not None and names.count(names[column]) > 1:
            found = f"{names.count(names[column])} columns {header[column].strip()!r}"
            raise UsageError(f"captions {path} have {found}; expected one, so remove or rename the others")
    captions = [index for index, name in enumerate(names) if name == names[caption]]
    for number, fields in records:
        place = f"{path}:{number}"
        if isinstance(fields, str):
            yield Reject(place, "malformed", fields)
        elif len(fields) != len(header):
            detail = f"{len(fields)} fields; expected {len(header)}; a field that contains the delimiter must be quoted"
            yield Reject(place, "malformed", detail)
        else:
            texts = [fields[column] for column in captions if is_visible(fields[column])] or [fields[caption]]
            values = [None if column is None else fields[column] for column in (split, categories)]
            for text in texts:
                yield make_row(place, fields[image], text, *values)


_HEADER = (
    f"a header with an image column ({', '.join(IMAGE_NAMES)}), a caption column ({', '.join(CAPTION_NAMES)}) "
    "and optionally split and categories"
)


def delimiter_advice(header: Sequence[str]) -> str:
    """Returns what to do about a header that another delimiter separates, as the end of a message; else nothing."""
    if len(header) == 1:
        for delimiter, name in _DELIMITERS.items():
            if delimiter in header[0]:
                return f"; its columns are separated by {name}: save it with commas as .csv or with tabs as .tsv"
    return ""


_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}


def tsv_records(lines: Iterator[tuple[int, str | None]]) -> Iterator[tuple[int, list[str] | str]]:
    """Splits lines as https://www.iana.org/assignments/media-types/text/tab-separated-values, and removes quotes."""
    for number, line in lines:
        if line is None:
            yield number, _TOO_LONG
        elif line.strip():
            yield number, [_unquoted(field) for field in line.removesuffix("\n").split("\t")]


def csv_records(lines: Iterator[tuple[int, str | None]]) -> Iterator[tuple[int, list[str] | str]]:
    """Yields records with the number of their first line.

    If a quote is never closed, the lines after its own are read again as records.
    """
    csv.field_size_limit(MAX_LINE * MAX_RECORD_LINES)  # process-wide; the default is 131,072
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
    """Yields numbered lines, None for overlong ones. Bytes that are not UTF-8 become lone surrogates."""
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
        raise UsageError(
            f"captions {path} start with a UTF-16 mark but are not UTF-16: {error}; save as UTF-8"
        ) from None


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


def _abbreviated(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


READERS: dict[str, Callable[[Path], CaptionRows]] = {
    ".json": _read_coco,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
}
"""Readers by file extension."""
