"""What stands around every route: who may ask, errors as JSON, and headers that keep the page from doing harm.

A web site that a person visits can make their browser send requests to this machine, even under a name of its own
that it resolves to 127.0.0.1. So requests must name this server as their host, and other pages' requests are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from infra.serve.refusal import Refusal

_LOG = logging.getLogger(__name__)

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


def guard(port: int) -> tuple[Any, Any]:
    """Returns the middlewares of a server on this port, the outer one first."""
    hosts = {f"{name}:{port}" for name in ("localhost", "127.0.0.1")}
    if port == 80:
        hosts |= {"localhost", "127.0.0.1"}
    origins = {f"http://{host}" for host in hosts}

    @web.middleware
    async def only_this_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Host", "").lower() not in hosts:
            raise Refusal(403, f"the request names another host; open http://localhost:{port}/")
        if request.headers.get("Origin", next(iter(origins))).lower() not in origins:
            raise Refusal(403, "the request comes from another site's page; that is not allowed")
        return await handler(request)

    return errors_as_json, only_this_machine


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every error with its status and `{"error": reason}`; what nobody expected is logged, too."""
    try:
        return await handler(request)
    except Refusal as refusal:
        headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
        return answer({"error": refusal.reason}, refusal.status, headers)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return answer({"error": f"{request.path} takes {allowed}, not {request.method}"}, 405, {"Allow": allowed})
    except web.HTTPRequestEntityTooLarge:
        limit = request.client_max_size >> 20
        return answer({"error": f"the body is larger than {limit} MiB; send a smaller image"}, 413)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        paths = "/, /search, /releases, /thumbnail, /healthz"
        return answer({"error": f"{request.path}: {error.reason}; there is {paths}"}, error.status)
    except Exception as error:
        _LOG.exception("%s %s", request.method, request.path)
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return answer({"error": f"this should not have happened ({reason}); the server's log says more"}, 500)


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`."""
    response.headers.update(HEADERS)


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Returns JSON that is not to be kept."""
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store", **(headers or {})})
