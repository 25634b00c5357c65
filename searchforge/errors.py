"""Errors that are reported to the user as a message without a stack trace.

A message states the value, what was expected and what to do. Exit codes of the command line: 0 success, 1 a gate or job
failed, 2 invalid usage or configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SearchforgeError(Exception):
    """Base class of errors reported to the user.

    Attributes:
      log_fields: Fields of its line in a structured log, see searchforge.console.logs.
    """

    exit_code = 1
    log_fields: Mapping[str, Any] = {}


class UsageError(SearchforgeError):
    """Invalid usage, configuration or input: retrying is futile until the user changes something."""

    exit_code = 2


class JobError(SearchforgeError):
    """A stage failed."""


class GateError(SearchforgeError):
    """A searcher failed its check, or was not checked before publication."""


class ConflictError(SearchforgeError):
    """Another writer replaced a mutable object first."""
