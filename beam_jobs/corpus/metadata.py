"""Metadata of an item: a JSON object that some file of the corpus gives, with its limits."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_METADATA = 64 * 2**10
"""Bytes of JSON an item; the device keeps all of it in the index."""

_SURELY_SHORT = MAX_METADATA // 6
"""A string of so many characters is short enough however JSON escapes it."""


def parse_object(text: bytes | str) -> dict[str, Any]:
    """Parses a JSON object whose values can be written as JSON again.

    Raises:
      ValueError: it is not UTF-8, not JSON, no object, or holds what only some parsers take (NaN, infinity, half of a
        surrogate pair).
    """
    if isinstance(text, bytes):
        text = text.decode()
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
    """Whether metadata, which was made of `source_length` characters, is more than an item may carry."""
    return source_length > _SURELY_SHORT and len(json.dumps(metadata, ensure_ascii=False).encode()) > MAX_METADATA


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
