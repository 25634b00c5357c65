"""Middlewares around every route: host and origin checks, errors as JSON, and security headers.

A website can make its visitor's browser send requests to this machine, even under a name of its own that resolves to
127.0.0.1 (DNS rebinding). Requests must therefore name this server as their host, and requests from pages of other
origins are refused. aiohttp has no middleware for either.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from infra.serve.request_error import RequestError

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def middlewares(port: int) -> tuple[Any, Any]:
    """Returns the middlewares of a server on this port, the outermost first."""
    hosts = {f"{name}:{port}" for name in ("localhost", "127.0.0.1")}
    if port == 80:
        hosts |= {"localhost", "127.0.0.1"}
    origins = {f"http://{host}" for host in hosts}

    @web.middleware
    async def require_local(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Host", "").lower() not in hosts:
            raise RequestError(403, f"the request names a different host; open http://localhost:{port}/")
        if request.headers.get("Origin", next(iter(origins))).lower() not in origins:
            raise RequestError(403, "requests from pages of other sites are not allowed")
        return await handler(request)

    return errors_as_json, require_local


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every error into a response `{"error": reason}` with its status; logs unexpected ones."""
    try:
        return await handler(request)
    except RequestError as error:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return json_response({"error": error.reason}, error.status, headers)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return json_response(
            {"error": f"{request.path} accepts {allowed}, not {request.method}"}, 405, {"Allow": allowed}
        )
    except web.HTTPRequestEntityTooLarge:
        limit = request.client_max_size >> 20
        return json_response({"error": f"the body is larger than {limit} MiB; send a smaller image"}, 413)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        paths = "/, /search, /releases, /thumbnail, /healthz"
        return json_response({"error": f"{request.path}: {error.reason}; available paths: {paths}"}, error.status)
    except Exception as error:
        logger.exception("%s %s", request.method, request.path)
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return json_response({"error": f"internal error ({reason}); the server's log has the details"}, 500)


async def add_security_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Adds HEADERS to a response; a handler of the signal `on_response_prepare`."""
    response.headers.update(HEADERS)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Returns a JSON response that clients do not cache."""
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store", **(headers or {})})
