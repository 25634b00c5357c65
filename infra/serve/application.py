"""The routes: the page, and the JSON endpoint that it stands on.

    GET  /search?q=TEXT      k=10, release=ID, where=KEY=VALUE (repeatable: all must hold)
    POST /search             the same with an image's bytes as the body instead of q
    GET  /releases           what is served
    GET  /thumbnail?id=ID    release=ID, size=small|large: a JPEG
    GET  /healthz            whether the server answers, and how busy it is

A search's answer is {"release", "query", "milliseconds", "considered", "hits", "cached"}, a hit {"id", "score",
"metadata"}: milliseconds are the Task Library's, encoding included; infra.serve.answers explains `considered` and
`cached`. An error is {"error": reason} with a status of 400 or above; 503 comes with Retry-After.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from infra.serve.answers import Answers
from infra.serve.byte_cache import ByteCache
from infra.serve.guard import add_headers, answer, guard
from infra.serve.parameters import Parameters
from infra.serve.pictures import SIDES
from infra.serve.refusal import Refusal
from infra.serve.served import Served

MAX_BODY = 32 * 2**20
"""Bytes of a query image."""

_MAX_UPLOADS = 8 * MAX_BODY
"""Bytes of all bodies that are being received or searched for."""

_UPLOAD_SECONDS = 60
_SEARCH = ("q", "k", "release", "where")
_STATIC = Path(__file__).parent / "static"
_THUMBNAIL_BYTES = 64 * 2**20
_THUMBNAIL_THREADS = 2
_WAITING_THUMBNAILS = 512


def application(served: Mapping[str, Served], answers: Answers, port: int) -> web.Application:
    """Returns the application of a server on this port."""
    routes = _Routes(served, answers)
    app = web.Application(middlewares=guard(port), client_max_size=MAX_BODY)
    app.on_response_prepare.append(add_headers)
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
    def __init__(self, served: Mapping[str, Served], answers: Answers) -> None:
        self._served = served
        self._answers = answers
        self._uploading = 0
        self._thumbnails = ByteCache(_THUMBNAIL_BYTES)
        self._painters = ThreadPoolExecutor(_THUMBNAIL_THREADS, thread_name_prefix="thumbnails")
        self._waiting_thumbnails = 0

    async def close(self, _: web.Application) -> None:
        self._painters.shutdown(wait=False, cancel_futures=True)

    async def page(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def search_text(self, request: web.Request) -> web.Response:
        parameters = Parameters(request.query.items(), _SEARCH, repeatable=("where",))
        found = await self._answers.of_text(parameters.text("q"), parameters.search(self._served))
        return _json(found)

    async def search_image(self, request: web.Request) -> web.Response:
        parameters = Parameters(request.query.items(), _SEARCH[1:], repeatable=("where",)).search(self._served)
        if request.content_type.startswith("multipart/"):
            raise Refusal(415, "a form is not understood; send an image's bytes as the body (curl --data-binary @FILE)")
        size = MAX_BODY if request.content_length is None else request.content_length
        if size > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, size)
        if self._uploading + size > _MAX_UPLOADS:
            raise Refusal(503, "too many images are being searched for; ask again in a second", retry_after=1)
        self._uploading += size
        try:
            data = await _body(request)
            return _json(await self._answers.of_image(data, parameters))
        finally:
            self._uploading -= size

    async def releases(self, request: web.Request) -> web.Response:
        Parameters(request.query.items(), ())
        return answer({"releases": [served.describe() for served in self._served.values()]})

    async def thumbnail(self, request: web.Request) -> web.Response:
        parameters = Parameters(request.query.items(), ("id", "release", "size"))
        id, release = parameters.text("id"), parameters.release(self._served)
        size = parameters.choice("size", SIDES, "small")
        picture = self._thumbnails.get((release, id, size))
        if picture is None:
            if self._waiting_thumbnails >= _WAITING_THUMBNAILS:
                raise Refusal(503, "too many pictures are being made; ask again in a second", retry_after=1)
            self._waiting_thumbnails += 1
            try:
                picture = await asyncio.get_running_loop().run_in_executor(
                    self._painters, self._served[release].pictures.thumbnail, id, size
                )
            finally:
                self._waiting_thumbnails -= 1
            self._thumbnails.put((release, id, size), picture)
        headers = {"Cache-Control": "private, max-age=3600"}  # an id's picture never changes within a release
        return web.Response(body=picture, content_type="image/jpeg", headers=headers)

    async def health(self, request: web.Request) -> web.Response:
        Parameters(request.query.items(), ())
        pool = self._answers.pool
        return answer({"status": "ok", "workers": pool.workers, "waiting": pool.waiting, "crashes": pool.crashes})


async def _body(request: web.Request) -> bytes:
    try:
        data = await asyncio.wait_for(request.read(), _UPLOAD_SECONDS)
    except (ConnectionError, web.RequestPayloadError):
        raise Refusal(400, "the body is not complete, or not what its headers say") from None
    except asyncio.TimeoutError:
        raise Refusal(408, f"the body did not arrive within {_UPLOAD_SECONDS} s") from None
    if not data:
        raise Refusal(400, "the body is empty; send the bytes of an image")
    return data


def _json(encoded: bytes) -> web.Response:
    return web.Response(body=encoded, content_type="application/json", headers={"Cache-Control": "no-store"})
