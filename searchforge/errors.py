"""Errors that are shown to a user as one message, without a stack trace.

A message names the value, what was expected and what to do. The exit codes are the command line's:
0 done, 1 a gate or a job failed, 2 bad usage or configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SearchforgeError(Exception):
    """Base of every error that is meant for the user.

    Attributes:
      log_fields: of its line in a structured log, see searchforge.console.logs.
    """

    exit_code = 1
    log_fields: Mapping[str, Any] = {}


class UsageError(SearchforgeError):
    """Bad usage, configuration or input: the same command fails again until the user changes something."""

    exit_code = 2


class JobError(SearchforgeError):
    """A stage could not finish its work."""


class GateError(SearchforgeError):
    """A searcher did not pass its check, or something unchecked was to be published."""


class ConflictError(SearchforgeError):
    """Another writer replaced a mutable object first."""
