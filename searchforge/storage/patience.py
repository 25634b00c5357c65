"""How long requests that fail are retried: minutes in jobs, seconds in commands that a person waits for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

JOB_SECONDS = 180.0
"""Seconds for which a job retries a failing request."""

COMMAND_SECONDS = 15.0
"""Seconds for which a command retries a failing request while a person waits for its answer."""

_seconds = JOB_SECONDS


def retry_seconds() -> float:
    """Returns the time after which a failing request is no longer retried."""
    return _seconds


@contextlib.contextmanager
def limit_retries(seconds: float) -> Iterator[None]:
    """Limits the retries of all storages that this process opens while the block runs."""
    global _seconds
    before, _seconds = _seconds, min(_seconds, seconds)
    try:
        yield
    finally:
        _seconds = before
