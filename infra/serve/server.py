"""The server's life: binds to 127.0.0.1, opens the releases, answers until it is told to end, and ends its children."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from aiohttp import web

from infra.serve.answers import Answers
from infra.serve.application import application
from infra.serve.pool import Pool
from infra.serve.served import Served, open_served
from searchforge.console import progress
from searchforge.errors import UsageError

if TYPE_CHECKING:
    from searchforge.config import Config

HOST = "127.0.0.1"

WAITING = 256
"""Queries that may wait for a worker; further ones are refused."""

_BACKLOG = 1024
_MAX_LINE = 2**20
"""Bytes of a request's first line: a query of 10,000 characters takes 120,000."""

_END_SECONDS = 5.0
"""In which running requests may finish when the server ends."""


def serve(
    config: Config,
    releases: Sequence[str] = (),
    port: int = 8080,
    workers: int | None = None,
    open_page: bool = False,
    as_json: bool = False,
    waiting: int = WAITING,
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
      releases: as of `infra.serve.served.open_served`.
      port: 0: a free one.
      workers: queries that are answered at once; default: one a core.
      open_page: whether to open the page in a browser.
      as_json: whether to print address and releases as one line of JSON, once the server answers.
      waiting: queries that may wait.

    Raises:
      UsageError: there is no such release, or the port is in use.
      JobError: the Task Library does not open a file.
    """
    served = open_served(config, releases)
    with _bound(port) as listening:
        files = [each.first_searcher for each in served.values()]
        with Pool(files, workers or len(os.sched_getaffinity(0)), waiting) as pool:
            answers = Answers(pool, served, config.corpus.max_pixels)
            try:
                asyncio.run(_serve(served, answers, listening, open_page, as_json))
            finally:
                answers.close()
                for each in served.values():
                    each.pictures.close()


async def _serve(
    served: dict[str, Served], answers: Answers, listening: socket.socket, open_page: bool, as_json: bool
) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    for each in served.values():
        progress.say(f"release {each.release.id}: {each.release.figures.get('images', '?')} images")
    progress.say(f"opening them in {answers.pool.workers} workers")
    opening: asyncio.Future[Any] = asyncio.ensure_future(asyncio.to_thread(answers.pool.start))
    stopped: asyncio.Future[Any] = asyncio.ensure_future(ending.wait())
    await asyncio.wait({opening, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not ending.is_set():
        await opening
        for each in served.values():
            each.pictures.start()
        port = listening.getsockname()[1]
        runner = web.AppRunner(
            application(served, answers, port),
            access_log=None,
            logger=_quiet_logger(),
            max_line_size=_MAX_LINE,
            auto_decompress=False,  # a small body could become an endless one
            shutdown_timeout=_END_SECONDS,
        )
        await runner.setup()
        await web.SockSite(runner, listening, backlog=_BACKLOG).start()
        _announce(f"http://{HOST}:{port}/", served, open_page, as_json)
        await ending.wait()
        progress.say("ending")
        await runner.cleanup()
    stopped.cancel()
    await asyncio.to_thread(answers.pool.close)
    with contextlib.suppress(Exception):
        await opening


def _announce(url: str, served: dict[str, Served], open_page: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"url": url, "releases": list(served)}))
    progress.say(f"{url} answers; end it with Ctrl-C")
    if open_page:
        click.launch(url)


def _bound(port: int) -> socket.socket:
    """Returns a socket on this port of 127.0.0.1."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UsageError(
            f"port {port} of {HOST} {reason}; end the program that uses it, or choose another with --port"
        ) from None
    return listening


def _quiet_logger() -> logging.Logger:
    """Returns the logger of aiohttp, which would write a stack trace for every malformed request."""
    logger = logging.getLogger("infra.serve.http")
    logger.setLevel(logging.CRITICAL)
    return logger
