"""A proxy for the GCS server that injects network and service faults."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

Fault = Literal["", "503", "429", "403", "410", "refused", "lost", "cut", "corrupt", "slow", "timeout"]
"""Fault to inject into a request: an HTTP status, or one of the following.

refused: the connection is closed before the request is executed.
lost: the request is executed, but the connection is closed before the response.
cut: only half of the response body arrives. corrupt: one bit of the body is flipped. slow: the body arrives slowly.
timeout: the request is executed, but the response does not arrive in time.
"""

STALL_SECONDS = 1.5
"""Delay of the fault `timeout`, longer than the clients of the tests wait."""


_OBJECT_NAME = re.compile(rb'"name": ?"([^"]+)"')


class Request(NamedTuple):
    """A request as a plan sees it; `number` counts from 0, and `uploads` names the object that it writes, if any."""

    number: int
    method: str
    path: str
    uploads: str = ""


class FaultyProxy(ThreadingHTTPServer):
    """Forwards requests to a server; `plan` chooses the fault of each request.

    Attributes:
      requests: Received requests, in order.
      faults: Injected faults, in order.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.plan: Callable[[Request], Fault] = lambda request: ""
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def reset(self, plan: Callable[[Request], Fault]) -> None:
        """Sets another plan and clears the recorded requests and faults."""
        with self._lock:
            self.plan, self.requests, self.faults = plan, [], []

    def fault_of(self, method: str, path: str, body: bytes) -> Fault:
        name = _OBJECT_NAME.search(body) if "/upload/" in path else None
        with self._lock:
            request = Request(len(self.requests), method, path, name[1].decode() if name else "")
            self.requests.append(request)
            fault = self.plan(request)
            if fault:
                self.faults.append(fault)
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors, since clients are expected to disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault_of(self.command, self.path, body)
        if fault.isdigit():
            self._send(int(fault), [("Content-Type", "text/plain")], f"injected fault {fault}".encode())
            return
        if fault == "refused":
            self._disconnect()
            return
        status, headers, data = self._forward(body)
        if fault == "timeout":
            time.sleep(STALL_SECONDS)
        if fault in ("lost", "timeout"):
            self._disconnect()
        elif fault == "corrupt" and data:
            self._send(status, headers, bytes([data[0] ^ 1]) + data[1:])
        else:
            self._send(status, headers, data, fault)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _answer

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = urlsplit(self.server.upstream)
        connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port, timeout=60)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "host")}
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, {**kept, "Host": upstream.netloc})
            response = connection.getresponse()
            data = response.read()
            headers = [
                (name, value.replace(self.server.upstream, self.server.url))
                for name, value in response.getheaders()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            ]
        if "json" in (response.getheader("Content-Type") or "") and "alt=media" not in self.path:
            data = data.replace(self.server.upstream.encode(), self.server.url.encode())  # links to objects
        return response.status, headers, data

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault = "") -> None:
        self.send_response_only(status)
        for name, value in [*headers, ("Content-Length", str(len(data)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self._disconnect()
            return
        if fault == "slow":
            for start in range(0, len(data), 1 + len(data) // 5):
                self.wfile.write(data[start : start + 1 + len(data) // 5])
                time.sleep(0.05)
            return
        self.wfile.write(data)

    def _disconnect(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


def one_write_per_second() -> Callable[[Request], Fault]:
    """Returns a plan with the limit of GCS: an object that was written less than a second ago answers 429."""
    written: dict[str, float] = {}

    def plan(request: Request) -> Fault:
        if not request.uploads:
            return ""
        now = time.monotonic()
        if now - written.get(request.uploads, -1.0) < 1.0:
            return "429"
        written[request.uploads] = now
        return ""

    return plan


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Runs a proxy in a thread."""
    with FaultyProxy(upstream) as proxy:
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
