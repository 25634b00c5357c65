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


class PermanentError(JobError):
    """A stage failed for a reason that another attempt would not change, such as a diverging loss."""


class GateError(SearchforgeError):
    """A searcher failed its check, or was not checked before publication."""


class ConflictError(SearchforgeError):
    """Another writer replaced a mutable object first."""


_PERMANENT_ERRORS = (
    UsageError,
    PermanentError,
    GateError,
    ConflictError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


def may_pass(error: BaseException) -> bool:
    """Returns whether another attempt may succeed after an error.

    Errors of storage and networks, lost processes and lack of memory may pass, and so may errors of unknown classes.
    Programming errors, bad input, failed gates and conflicts with other writers may not, nor may an error that was
    raised from one of them.
    """
    cause: BaseException | None = error
    while cause:
        # Libraries derive errors of the network from both OSError and ValueError.
        if isinstance(cause, _PERMANENT_ERRORS) and not isinstance(cause, OSError):
            return False
        cause = cause.__cause__
    return True
