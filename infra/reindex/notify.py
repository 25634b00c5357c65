"""Notifications: sends the journal entry of an ended run, as JSON, to a webhook and to a command.

A failed notification is logged and never fails the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlsplit

from infra.reindex.journal import Run
from searchforge.clock import Clock
from searchforge.config import ReindexConfig

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Maximum number of requests to a webhook that is unreachable or overloaded."""

PAUSE_SECONDS = 1.0
"""Pause before the second attempt; doubled for each further one."""

TIMEOUT_SECONDS = 30.0
"""Time limit of a request to the webhook, and of the command."""

OUTPUT_BYTES = 500
"""Number of bytes at the end of a failed command's output that are logged."""


def notify(settings: ReindexConfig, run: Run, timeout: float = TIMEOUT_SECONDS, clock: Clock = time) -> None:
    """Sends an ended run to the webhook and the command, if `notify_on` includes its state.

    Args:
      timeout: Time limit of a request to the webhook, and of the command, in seconds.
      clock: Clock for the pauses between requests.
    """
    states = {"never": (), "failure": ("failed",), "change": ("failed", "published")}[settings.notify_on]
    if run.state not in states:
        return
    entry = run.model_dump_json(indent=1).encode()
    if settings.notify_webhook and (fault := _post(settings.notify_webhook, entry, timeout, clock)):
        logger.info(f"reindex.notify_webhook was not notified of run {run.run}: {fault}")
    if settings.notify_command and (fault := _run_command(settings.notify_command, entry, timeout)):
        logger.info(f"reindex.notify_command was not notified of run {run.run}: {fault}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Does not follow redirects, so that the entry goes only to the configured URL."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _post(url: str, entry: bytes, timeout: float, clock: Clock) -> str:
    """Posts the entry; returns an error message, or an empty string. The URL may contain a secret, so only the host is
    named.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        host = None
    if not host:
        return "it is not a valid URL; expected https://host/path"
    opener = urllib.request.build_opener(_NoRedirect)
    request = urllib.request.Request(url, entry, {"Content-Type": "application/json", "User-Agent": "searchforge"})
    fault = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            clock.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            with opener.open(request, timeout=timeout):
                return ""
        except urllib.error.HTTPError as error:
            error.close()
            fault = f"{host} returned status {error.code}"
            if error.code < 500 and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                break
        except (OSError, HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            fault = f"{host} cannot be reached ({getattr(cause, 'strerror', None) or type(cause).__name__})"
    return fault


def _run_command(command: Sequence[str], entry: bytes, timeout: float) -> str:
    """Runs a command with the entry on its standard input; returns an error message, or an empty string."""
    with tempfile.TemporaryFile() as file:
        file.write(entry)
        file.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
        except (OSError, ValueError) as error:
            return f"{command[0]!r} cannot be run ({getattr(error, 'strerror', None) or error})"
    output = bytearray()
    reader = threading.Thread(target=_read_tail, args=[process.stdout, output], daemon=True)
    reader.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{command[0]!r} was killed after {timeout:g} s"
    if not code:
        return ""
    reader.join(1.0)  # a background process of the command may keep the pipe open
    return f"{command[0]!r} exited with code {code}: {' '.join(output.decode(errors='replace').split()) or 'no output'}"


def _read_tail(stream: IO[bytes], tail: bytearray) -> None:
    """Reads all output, so that the command does not block, and keeps the end of it."""
    with stream:
        while chunk := stream.read1(65536):  # type: ignore[attr-defined]
            tail += chunk
            del tail[:-OUTPUT_BYTES]
