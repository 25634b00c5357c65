"""The HTTP routes: the web page and its JSON endpoint.

    GET  /search?q=TEXT      k=10, release=ID, where=KEY=VALUE (repeatable; all conditions must hold)
    POST /search             the same without q, and with the bytes of an image as the body
    GET  /releases           the served releases
    GET  /thumbnail?id=ID    release=ID, size=small|large; returns a JPEG
    GET  /healthz            liveness, workers and queue length

A search returns {"release", "query", "milliseconds", "considered", "hits", "cached"} with hits {"id", "score",
"metadata"}. `milliseconds` is the Task Library's time, encoding included; see infra.serve.search_service for
`considered` and `cached`. An error is {"error": reason} with a status of 400 or above; a 503 has Retry-After.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web
from cachetools import LRUCache

from infra.serve.guard import add_security_headers, json_response, middlewares
from infra.serve.parameters import (
    Parameters,
    SearchParameters,
    TextSearchParameters,
    ThumbnailParameters,
    parse,
    shorten,
)
from infra.serve.request_error import RequestError
from infra.serve.search_service import SearchService
from infra.serve.served_release import ServedRelease

MAX_BODY = 32 * 2**20
"""Maximum number of bytes of a query image."""

_MAX_UPLOADS = 8 * MAX_BODY
"""Maximum number of bytes of all bodies that are being received or searched."""

_UPLOAD_SECONDS = 60
_STATIC = Path(__file__).parent / "static"
_THUMBNAIL_CACHE_BYTES = 64 * 2**20
_THUMBNAIL_THREADS = 2
_MAX_QUEUED_THUMBNAILS = 512


def application(releases: Mapping[str, ServedRelease], service: SearchService, port: int) -> web.Application:
    """Returns the web application of a server on this port."""
    routes = _Routes(releases, service)
    app = web.Application(middlewares=middlewares(port), client_max_size=MAX_BODY)
    app.on_response_prepare.append(add_security_headers)
    app.on_cleanup.append(routes.close)
    app.router.add_get("/", routes.page)
    app.router.add_get("/search", routes.search_text)
    app.router.add_post("/search", routes.search_image)
    app.router.add_get("/releases", routes.releases)
    app.router.add_get("/thumbnail", routes.thumbnail)
    app.router.add_get("/healthz", routes.health)
    app.router.add_static("/static", _STATIC)
    return app


class _Routes:
    def __init__(self, releases: Mapping[str, ServedRelease], service: SearchService) -> None:
        self._releases = releases
        self._service = service
        self._upload_bytes = 0
        self._thumbnails: LRUCache[Hashable, bytes] = LRUCache(_THUMBNAIL_CACHE_BYTES, getsizeof=len)
        self._thumbnail_threads = ThreadPoolExecutor(_THUMBNAIL_THREADS, thread_name_prefix="thumbnails")
        self._queued_thumbnails = 0

    async def close(self, _: web.Application) -> None:
        self._thumbnail_threads.shutdown(wait=False, cancel_futures=True)

    async def page(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def search_text(self, request: web.Request) -> web.Response:
        parameters = parse(TextSearchParameters, request.query.items())
        release = self._release(parameters.release)
        return _search_response(await self._service.search_text(release, parameters.q, parameters))

    async def search_image(self, request: web.Request) -> web.Response:
        parameters = parse(SearchParameters, request.query.items())
        release = self._release(parameters.release)
        if request.content_type.startswith("multipart/"):
            raise RequestError(
                415, "forms are not supported; send the bytes of an image as the body (curl --data-binary @FILE)"
            )
        size = MAX_BODY if request.content_length is None else request.content_length
        if size > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, size)
        if self._upload_bytes + size > _MAX_UPLOADS:
            raise RequestError(503, "too many images are being searched; retry in a second", retry_after=1)
        self._upload_bytes += size
        try:
            data = await _read_body(request)
            return _search_response(await self._service.search_image(release, data, parameters))
        finally:
            self._upload_bytes -= size

    async def releases(self, request: web.Request) -> web.Response:
        parse(Parameters, request.query.items())
        return json_response({"releases": [release.describe() for release in self._releases.values()]})

    async def thumbnail(self, request: web.Request) -> web.Response:
        parameters = parse(ThumbnailParameters, request.query.items())
        release = self._release(parameters.release)
        key = (release.id, parameters.id, parameters.size)
        jpeg = self._thumbnails.get(key)
        if jpeg is None:
            if self._queued_thumbnails >= _MAX_QUEUED_THUMBNAILS:
                raise RequestError(503, "too many thumbnails are being made; retry in a second", retry_after=1)
            self._queued_thumbnails += 1
            try:
                jpeg = await asyncio.get_running_loop().run_in_executor(
                    self._thumbnail_threads, release.thumbnails.read, parameters.id, parameters.size
                )
            finally:
                self._queued_thumbnails -= 1
            self._thumbnails[key] = jpeg
        headers = {"Cache-Control": "private, max-age=3600"}  # an item's image never changes within a release
        return web.Response(body=jpeg, content_type="image/jpeg", headers=headers)

    async def health(self, request: web.Request) -> web.Response:
        parse(Parameters, request.query.items())
        pool = self._service.pool
        return json_response({"status": "ok", "workers": pool.workers, "waiting": pool.queued, "crashes": pool.crashes})

    def _release(self, id: str | None) -> ServedRelease:
        """Returns the release with this id, or by default the first one."""
        if id is None:
            return next(iter(self._releases.values()))
        if id not in self._releases:
            served = ", ".join(self._releases)
            raise RequestError(404, f"release {shorten(id)} is not served here; served releases: {served}")
        return self._releases[id]


async def _read_body(request: web.Request) -> bytes:
    try:
        data = await asyncio.wait_for(request.read(), _UPLOAD_SECONDS)
    except (ConnectionError, web.RequestPayloadError):
        raise RequestError(400, "the body is incomplete or does not match its headers") from None
    except asyncio.TimeoutError:
        raise RequestError(408, f"the body did not arrive within {_UPLOAD_SECONDS} s") from None
    if not data:
        raise RequestError(400, "the body is empty; send the bytes of an image")
    return data


def _search_response(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
