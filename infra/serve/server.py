"""Life cycle of the server: binds to 127.0.0.1, opens the releases, serves until a signal, and stops its children."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from infra.serve.application import application
from infra.serve.pool import SearcherPool
from infra.serve.search_service import SearchService
from infra.serve.served_release import ServedRelease, open_served_releases
from searchforge.errors import UsageError

if TYPE_CHECKING:
    from searchforge.config import Config

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"

ReadyCallback = Callable[[str, list[str]], None]
"""Function that takes the URL of the page and the ids of the served releases."""

MAX_QUEUED = 256
"""Maximum number of queries that wait for a worker; further ones are refused."""

_BACKLOG = 1024
_MAX_REQUEST_LINE = 2**20
"""Maximum number of bytes of a request line; a query of 10,000 characters takes up to 120,000."""

_SHUTDOWN_SECONDS = 5.0
"""Seconds that running requests have to finish when the server shuts down."""


def serve(
    config: Config,
    releases: Sequence[str] = (),
    port: int = 8080,
    workers: int | None = None,
    max_queued: int = MAX_QUEUED,
    on_ready: ReadyCallback = lambda url, releases: None,
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
      releases: Ids, folders or URLs, as for `infra.api.open_release`; the live release if empty.
      port: TCP port; 0 for a free one.
      workers: Number of queries that run at the same time; one per core by default.
      max_queued: Maximum number of queries that wait for a worker.
      on_ready: Function called once the server accepts requests.

    Raises:
      UsageError: A release does not exist, or the port is in use.
      JobError: The Task Library cannot open a file.
    """
    served = open_served_releases(config, releases)
    with _bind(port) as listener:
        files = [release.first_searcher for release in served.values()]
        with SearcherPool(files, workers or len(os.sched_getaffinity(0)), max_queued) as pool:
            service = SearchService(pool, config.corpus.max_pixels)
            try:
                asyncio.run(_serve(served, service, listener, on_ready))
            finally:
                service.close()
                for release in served.values():
                    release.thumbnails.close()


async def _serve(
    served: dict[str, ServedRelease], service: SearchService, listener: socket.socket, on_ready: ReadyCallback
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    for release in served.values():
        logger.info(f"release {release.id}: {release.release.figures.get('images', '?')} items")
    logger.info(f"opening the searchers in {service.pool.workers} workers")
    opening: asyncio.Future[Any] = asyncio.ensure_future(asyncio.to_thread(service.pool.start))
    stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    await asyncio.wait({opening, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        await opening
        for release in served.values():
            release.thumbnails.start()
        port = listener.getsockname()[1]
        runner = web.AppRunner(
            application(served, service, port),
            access_log=None,
            logger=_quiet_logger(),
            max_line_size=_MAX_REQUEST_LINE,
            auto_decompress=False,  # a small compressed body could expand without limit
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await runner.setup()
        await web.SockSite(runner, listener, backlog=_BACKLOG).start()
        url = f"http://{HOST}:{port}/"
        on_ready(url, list(served))
        logger.info(f"serving at {url}; press Ctrl-C to stop")
        await stop.wait()
        logger.info("shutting down")
        await runner.cleanup()
    stopped.cancel()
    await asyncio.to_thread(service.pool.close)
    with contextlib.suppress(Exception):
        await opening


def _bind(port: int) -> socket.socket:
    """Returns a socket bound to this port of 127.0.0.1."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UsageError(
            f"port {port} of {HOST} {reason}; stop the program that uses it, or choose another port with --port"
        ) from None
    return listener


def _quiet_logger() -> logging.Logger:
    """Returns a logger for aiohttp, which would otherwise log a stack trace for every malformed request."""
    logger = logging.getLogger("infra.serve.http")
    logger.setLevel(logging.CRITICAL)
    return logger
