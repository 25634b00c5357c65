"""Parsing and limits of an item's metadata, a JSON object from the corpus."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_METADATA = 64 * 2**10
"""Maximum size of an item's metadata in bytes of JSON, all of which the index on the device stores."""

_SHORT = MAX_METADATA // 6
"""Number of source characters that cannot exceed the limit, however JSON escapes them."""


def parse_object(text: bytes | str) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
      ValueError: The text is not UTF-8 (with or without a byte order mark), not JSON, not an object, or contains a
        value that standard JSON cannot express (NaN, infinity, a lone surrogate).
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, expected an object")
    return value


def is_too_long(metadata: dict[str, Any], source_length: int) -> bool:
    """Returns whether metadata, made from `source_length` characters, exceeds the limit."""
    return source_length > _SHORT and len(json.dumps(metadata, ensure_ascii=False).encode()) > MAX_METADATA


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
