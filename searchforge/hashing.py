"""Content hashes of bytes, files and JSON values, from which ids of artifacts are derived."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

ID_LENGTH = 16
"""Hexadecimal digits of an artifact id: the first 64 bits of a SHA-256."""


def sha256_bytes(data: bytes) -> str:
    """Returns the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Returns `value` as canonical UTF-8 JSON: sorted keys, no spaces, no NaN.

    Raises:
      ValueError: `value` contains NaN or infinity.
    """
    return _canonical(value).encode()


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def content_id(value: Any) -> str:
    """Returns the artifact id of a JSON value; equal values have equal ids."""
    return sha256_bytes(canonical_json(value))[:ID_LENGTH]
