"""Writes cpp/text/delimiters.inc: the characters beyond ASCII that the Task Library's BertTokenizer splits off.

They are the punctuation of Unicode 15 (categories P*) and the blocks of Chinese characters in its regular expression.
Run as `python ondevice/tools/write_delimiters.py`.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

OUTPUT = Path(__file__).parent.parent / "cpp" / "text" / "delimiters.inc"

CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
ADDED_BY_UNICODE_15 = ((0x11B00, 0x11B09), (0x11F43, 0x11F4F))
"""Punctuation that the `unicodedata` of Python 3.11 (Unicode 14) lacks."""


@functools.cache
def delimiters() -> frozenset[int]:
    """Returns the code points beyond ASCII."""
    assert unicodedata.unidata_version in ("14.0.0", "15.0.0", "15.1.0"), "later versions have more punctuation"
    found = frozenset(point for point in range(0x80, 0x110000) if unicodedata.category(chr(point)).startswith("P"))
    return found.union(*(range(first, last + 1) for first, last in (*CHINESE, *ADDED_BY_UNICODE_15)))


def ranges(points: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yields the first and last number of each run of consecutive numbers."""
    ordered = sorted(points)
    first = ordered[0]
    for point, following in zip(ordered, [*ordered[1:], -1], strict=True):
        if following != point + 1:
            yield first, point
            first = following


def text() -> str:
    """Returns the file's content."""
    lines = "".join(f"{{{first:#x}, {last:#x}}},\n" for first, last in ranges(delimiters()))
    return f"// First and last code point of each range of delimiters; written by tools/write_delimiters.py.\n{lines}"


if __name__ == "__main__":
    OUTPUT.write_text(text())
