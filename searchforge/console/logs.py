"""What a command tells on standard error, for a log collector: one JSON object a line.

    {"time": "2026-11-28T03:00:04.120+00:00", "severity": "INFO", "message": "embed: 512/2400", "run": "2026...",
     "stage": "embed", "done": 512, "total": 2400}

`time`, `severity` and `message` are the names that Cloud Logging reads; `--log-format json` or SEARCHFORGE_LOG=json
asks for them.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Literal

from searchforge.errors import SearchforgeError

Format = Literal["text", "json"]
Severity = Literal["INFO", "ERROR"]

_format: Format = "text"
_bound: dict[str, Any] = {}


def use(format: Format) -> None:
    """Chooses the form of everything that is told from now on."""
    global _format
    _format = format


def structured() -> bool:
    """Whether lines are JSON."""
    return _format == "json"


@contextmanager
def bind(**fields: Any) -> Iterator[None]:
    """Inside, every JSON line of this process carries `fields`, such as `run` or `stage`, whichever thread writes it.

    So does the line of an error that leaves it.
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


def write(message: str, severity: Severity = "INFO", **fields: Any) -> None:
    """Writes one JSON line."""
    print(_line(message, severity, **fields), file=sys.stderr, flush=True)


def show(error: SearchforgeError) -> None:
    """Shows an error to the user."""
    if structured():
        write(str(error), "ERROR", **error.log_fields)
    else:
        print(f"error: {error}", file=sys.stderr, flush=True)


class LibraryHandler(logging.StreamHandler):
    """Writes what libraries log; of a JSON line, stack traces are no part."""

    def format(self, record: logging.LogRecord) -> str:
        if structured():
            return _line(record.getMessage(), "ERROR", logger=record.name)
        return super().format(record)


def _line(message: str, severity: Severity, **fields: Any) -> str:
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "severity": severity, "message": message.strip(), **_bound, **fields}, default=str)
