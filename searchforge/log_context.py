"""Fields that all log lines of a process share while a block runs, such as the run and its stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from searchforge.errors import SearchforgeError

_bound: Mapping[str, Any] = {}


@contextmanager
def bind(**fields: Any) -> Iterator[None]:
    """Adds fields to every JSON log line that this process writes during the block.

    A SearchforgeError raised in the block keeps them for the line that reports it.
    """
    global _bound
    outer = _bound
    _bound = {**outer, **fields}
    try:
        yield
    except SearchforgeError as error:
        error.log_fields = {**_bound, **error.log_fields}
        raise
    finally:
        _bound = outer


def bound() -> Mapping[str, Any]:
    """Returns the fields that are bound."""
    return _bound
