"""Maps configured runner names to Beam options, and lets a request to stop end a Beam job."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""The runner that DirectRunner falls back to after trying to download another one; naming it avoids the download."""


def runner_option(runner: str) -> str:
    """Returns the Beam option that selects a runner."""
    return f"--runner={_LOCAL if runner == 'DirectRunner' else runner}"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt, or another request to stop, as it was raised while a local runner ran the block.

    Beam logs it with a stack trace and raises a RuntimeError in its place.
    """
    logger = logging.getLogger("apache_beam.runners.common")
    logger.addFilter(_is_failure)
    try:
        yield
    except BaseException as error:
        if (request := _stop_request(error)) and request is not error:
            raise request from None
        raise
    finally:
        logger.removeFilter(_is_failure)


def _is_failure(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[1] and _stop_request(record.exc_info[1]))


def _stop_request(error: BaseException | None) -> BaseException | None:
    """Returns the original exception of a chain if it is a request to stop rather than a failure."""
    original = None
    while error:
        original = error
        error = error.__cause__ or error.__context__
    return None if isinstance(original, Exception) else original
