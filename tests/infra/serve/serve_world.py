"""Two small releases of photos with metadata, and `searchforge serve` as a process that serves them."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from indexer.build import build_index
from infra.cli.main import main
from infra.serve.server import serve
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from tests.indexer.tiny_corpus import commit_embeddings, make_corpus
from tests.infra.forked import fork

COUNT = 120
HALF = COUNT // 2
HOSTILE_ID = " <img src=x onerror=document.title='harm'> "
HOSTILE_TEXT = "</bdi><script>document.title='harm'</script><b onmouseover=document.title='harm'>bold</b>"
HOSTILE = 7
"""Number of the image whose id and metadata try to inject HTML into the page."""

TIMEOUT_SECONDS = 60

_READY = '{"url": '
"""Start of the line that a server prints once it is ready."""


def make_world(root: Path) -> Path:
    """Commits the releases `all` (live; 120 images) and `half` (the first 60); returns the workspace's folder.

    Item i has the id `<i>.png`, is the best hit for the query `w<i>`, and has metadata: number, parity and tags; item
    HOSTILE has more.
    """
    corpus = make_corpus(root, COUNT)
    records = []
    for number, record in enumerate(corpus.records):
        metadata: dict[str, Any] = {"number": number, "parity": "odd" if number % 2 else "even", "tags": ["a", number]}
        id = record.id
        if number == HOSTILE:
            id, metadata["caption"] = HOSTILE_ID, HOSTILE_TEXT
        records.append(dataclasses.replace(record, id=id, metadata=metadata))
    for name, part in (("half", records[:HALF]), ("all", records)):
        commit_embeddings(corpus.workspace, part, id=f"photos-{name}")
        _publish(corpus.workspace, name, build_index(corpus.config, f"photos-{name}"))
    return Path(corpus.workspace.root)


def _publish(workspace: Workspace, id: str, build: dict[str, Any]) -> None:
    """Commits a release of an unchecked searcher like infra.releases.releases, and makes it live."""
    folder = workspace.local("searchers", build["id"])
    with workspace.create("releases", id) as staging:
        for name in ("text_searcher.tflite", "image_searcher.tflite"):
            shutil.copy(folder / name, staging.path / name)
        staging.commit(
            {
                "version": 1,
                "id": id,
                "created": f"2026-01-01T00:00:00+00:00 {id}",
                "fingerprint": build["fingerprint"],
                "files": {},
                "figures": {"images": build["images"], "recall_at_10": 0.97, "latency_p50_ms": 5.0},
                "corpus": {"rejected_by_reason": {}},
                "provenance": {"encoder": "tiny", "embeddings": build["embeddings"], "searcher": build["id"]},
            }
        )
    _, version = workspace.storage.read_version("releases/CURRENT.json")
    workspace.storage.replace("releases/CURRENT.json", json.dumps({"version": 1, "release": id}).encode(), version)


def _print_url(url: str, releases: list[str]) -> None:
    print(json.dumps({"url": url, "releases": releases}), flush=True)


class Reply(NamedTuple):
    """An HTTP response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def ids(self) -> list[str]:
        return [hit["id"] for hit in self.json["hits"]]


@dataclasses.dataclass
class Server:
    """A running server.

    Attributes:
      pid: Id of the process, which leads a process group.
      log: File with its output.
    """

    pid: int
    log: Path
    _code: int | None = None

    @property
    def first_line(self) -> str:
        """Line of JSON that the server prints once it is ready."""
        return next((line for line in self.log.read_text().splitlines() if line.startswith(_READY)), "")

    @property
    def port(self) -> int:
        return int(json.loads(self.first_line)["url"].rstrip("/").rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def ask(self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Sends one request on a separate connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Host": f"localhost:{self.port}", **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def search(self, q: str, where: Sequence[str] = (), **parameters: Any) -> Reply:
        query = urlencode([("q", q), *parameters.items(), *(("where", condition) for condition in where)])
        return self.ask(f"/search?{query}")

    def children(self) -> list[int]:
        """Returns the ids of running processes in the server's process group, except the server."""
        ids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        return [id for id in ids if id != self.pid and _ids(id)[1:] == (self.pid,) and is_running(id)]

    def searchers(self) -> list[int]:
        """Returns the ids of the processes that run searchers: the children of a fork server."""
        return [
            child for child in self.children() if "searchforge.processes.fork_server" in _command_of(_ids(child)[0])
        ]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal unless the server has ended; returns the exit code."""
        if self._code is None:
            os.kill(self.pid, number)
            wait_for(self.has_ended)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def has_ended(self) -> bool:
        return self._code is not None or bool(os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def _ids(pid: int) -> tuple[int, ...]:
    """Returns the ids of a process's parent and of its group; empty if it has ended."""
    try:
        parent, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1:3]
    except OSError:
        return ()
    return int(parent), int(group)


def is_running(pid: int) -> bool:
    """Returns whether a thread of the process is alive; after that, its parent can reap it and its pipes are closed."""
    try:
        stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
        return is_running(pid)
    return any(stat.rpartition(")")[2].split()[0] not in "XZ" for stat in stats)


def _command_of(pid: int) -> str:
    """Returns the arguments of a process, separated by spaces; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def wait_for(condition: Any) -> None:
    """Returns once `condition()` is true; fails after a minute."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.02)


@contextlib.contextmanager
def serving(
    workspace: Path,
    *arguments: str,
    short_queue: tuple[int, int] | None = None,
    until: str = _READY,
    forked: bool = True,
) -> Iterator[Server]:
    """Runs `searchforge serve` on a free port; stops it on exit.

    Args:
      arguments: Further arguments of the command line.
      short_queue: Number of workers and maximum number of queued queries.
      until: Text to wait for in the log; by default, until the server is ready.
      forked: Whether to fork the server from this process, which has imported everything, or to start a new Python.
    """
    log = Path(tempfile.mkstemp(suffix=".log", dir=workspace.parent)[1])
    options = ["serve", "--workspace", str(workspace), "--port", "0", "--json", *arguments]
    if short_queue:
        workers, queued = short_queue
        config = load_config(None, {"workspace": str(workspace)})
        server = Server(fork(lambda: serve(config, (), 0, workers, queued, _print_url), log), log)
    elif forked:
        server = Server(fork(lambda: main(options), log), log)
    else:
        command = [sys.executable, "-m", "infra", *options]
        server = Server(fork(lambda: os.execv(sys.executable, command), log), log)
    try:
        wait_for(lambda: until in log.read_text() or server.has_ended())
        assert until in log.read_text(), f"the server did not start: {log.read_text()}"
        yield server
    finally:
        server.end()
