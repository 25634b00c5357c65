"""Tells somebody how a run ended: its journal entry, as JSON, to a webhook and to a command.

Neither can fail the run: what goes wrong here is said, and that is all.
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
"""At a webhook that is out of reach or answers that it is overloaded."""

PAUSE_SECONDS = 1.0
"""Before the second attempt; doubled for the third."""

TIMEOUT_SECONDS = 30.0
"""Of one attempt at the webhook, and of the command."""

SHOWN = 500
"""Bytes of a failed command's output that are shown, from its end."""


def notify(settings: ReindexConfig, run: Run, timeout: float = TIMEOUT_SECONDS, clock: Clock = time) -> None:
    """Hands an ended run to the webhook and to the command, if it is one that `notify_on` asks for.

    Args:
      timeout: of one attempt at the webhook, and of the command, in seconds.
      clock: waits between two attempts.
    """
    wanted = {"never": (), "failure": ("failed",), "change": ("failed", "published")}[settings.notify_on]
    if run.state not in wanted:
        return
    entry = run.model_dump_json(indent=1).encode()
    if settings.notify_webhook and (fault := _post(settings.notify_webhook, entry, timeout, clock)):
        logger.info(f"reindex.notify_webhook was not told of run {run.run}: {fault}")
    if settings.notify_command and (fault := _call(settings.notify_command, entry, timeout)):
        logger.info(f"reindex.notify_command was not told of run {run.run}: {fault}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer, and not followed: the entry goes where the configuration says."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _post(url: str, entry: bytes, timeout: float, clock: Clock) -> str:
    """Posts the entry; returns what went wrong. Of the URL, which may hold a secret, only the host is named."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        host = None
    if not host:
        return "it is no URL that can be posted to; expected https://host/path"
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
            fault = f"{host} answers {error.code}"
            if error.code < 500 and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                break
        except (OSError, HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            fault = f"{host} cannot be reached ({getattr(cause, 'strerror', None) or type(cause).__name__})"
    return fault


def _call(command: Sequence[str], entry: bytes, timeout: float) -> str:
    """Runs a command with the entry as its standard input; returns what went wrong."""
    with tempfile.TemporaryFile() as file:
        file.write(entry)
        file.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
        except (OSError, ValueError) as error:
            return f"{command[0]!r} cannot be run ({getattr(error, 'strerror', None) or error})"
    shown = bytearray()
    reader = threading.Thread(target=_keep_end, args=[process.stdout, shown], daemon=True)
    reader.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{command[0]!r} was ended after {timeout:g} s"
    if not code:
        return ""
    reader.join(1.0)  # a process that the command left behind may hold the pipe open
    return f"{command[0]!r} ended with {code}: {' '.join(shown.decode(errors='replace').split()) or 'no output'}"


def _keep_end(stream: IO[bytes], shown: bytearray) -> None:
    """Reads all output, so that the command is not held up, and keeps its end."""
    with stream:
        while chunk := stream.read1(65536):  # type: ignore[attr-defined]
            shown += chunk
            del shown[:-SHOWN]
