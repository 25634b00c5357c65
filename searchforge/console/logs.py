"""Logging of the command lines: plain messages on stderr, or one JSON object per line for a log collector.

    {"time": "2026-11-28T03:00:04.120+00:00", "severity": "INFO", "run": "2026...", "stage": "embed",
     "message": "embed: 512/2400, 31 items/s, about 61 s left", "done": 512, "total": 2400}

`time`, `severity` and `message` are the names that Cloud Logging reads. `--log-format json` or SEARCHFORGE_LOG=json
selects JSON.

The packages log through the standard `logging` module. Python programs that use them without a command line see
these messages once they configure logging, for example with `logging.basicConfig(level=logging.INFO)`.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, Literal

from searchforge import log_context, progress
from searchforge.console.progress_bars import progress_bar
from searchforge.errors import SearchforgeError

Format = Literal["text", "json"]

PACKAGES = ("searchforge", "trainer", "beam_jobs", "indexer", "serving_check", "infra")
"""Packages whose messages are shown. Of other libraries, only errors are."""

_format: Format = "text"


def configure(format: Format) -> None:
    """Sends log records to stderr in this format, and draws progress bars if that is text on a terminal.

    It may be called again to change the format.
    """
    global _format
    _format = format
    root = logging.getLogger()
    root.setLevel(logging.ERROR)
    if not any(isinstance(handler, ConsoleHandler) for handler in root.handlers):
        root.addHandler(ConsoleHandler())
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    progress.use_bars(progress_bar if format == "text" and sys.stderr.isatty() else None)


def print_error(error: SearchforgeError) -> None:
    """Prints an error on stderr."""
    _print(_json_line(str(error), "ERROR", **error.log_fields) if _format == "json" else f"error: {error}")


class ConsoleHandler(logging.Handler):
    """Prints log records on the current `sys.stderr`. JSON lines and errors for the user contain no stack traces."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(logging.BASIC_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        is_message = record.name.partition(".")[0] in PACKAGES and record.levelno < logging.ERROR
        if _format == "json":
            fields = getattr(record, "fields", {}) if is_message else {"logger": record.name}
            _print(_json_line(record.getMessage(), record.levelname, **fields))
        elif record.exc_info and isinstance(record.exc_info[1], SearchforgeError):
            _print(f"{record.levelname}:{record.name}:{record.getMessage()}")
        else:
            _print(record.getMessage() if is_message else self.format(record))


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _json_line(message: str, severity: str, **fields: Any) -> str:
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps(
        {"time": time, "severity": severity, "message": message.strip(), **log_context.bound(), **fields}, default=str
    )
