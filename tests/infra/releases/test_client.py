"""The reference client installs the files listed in the pointer, and never loses the installed version."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.releases.client import Client, Outcome, RefusedError, main
from infra.releases.releases import live_release, publish, rollback
from searchforge.artifacts.workspace import Workspace
from tests.infra.releases.sample_artifacts import FILES, commit_checked

CURRENT = "releases/CURRENT.json"
KILOBYTES = 300


class _Server(ThreadingHTTPServer):
    """Serves a folder with support for single ranges, counts bytes, and fails on request."""

    def __init__(self, root: Path) -> None:
        self.root, self.sent, self.ranges = root, 0, 0
        self.cut: int | None = None
        """Number of bytes after which the body of a searcher ends; None sends all of it."""
        self.status: dict[str, int] = {}
        """Status to return, by the suffix of the path."""
        self.on_file: Callable[[], object] = lambda: None
        """Function called before a searcher is sent."""
        self.no_ranges = False
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        server = self.server
        for end, status in server.status.items():
            if self.path.endswith(end):
                self.send_error(status)
                return
        is_file = self.path.endswith(".tflite")
        if is_file:
            server.on_file()
        path = server.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not server.no_ranges else 0
        server.ranges += bool(start)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:] if server.cut is None or not is_file else data[start : start + server.cut]
        self.wfile.write(body)
        server.sent += len(body)

    def log_message(self, *_: Any) -> None:
        """Suppresses logging."""


@pytest.fixture
def target(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "public"))


@pytest.fixture
def server(target: Workspace) -> Iterator[_Server]:
    with _Server(Path(target.root)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def _publish(target: Workspace, name: str) -> str:
    return publish(target, target, commit_checked(target, name, kilobytes=KILOBYTES)).id


def _holds(folder: Path | None, name: str) -> bool:
    return folder is not None and all((folder / file).read_text().startswith(f"{name} {file}") for file in FILES)


def _change_pointer(target: Workspace, **values: Any) -> None:
    path = Path(target.root, CURRENT)
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("remote", [True, False])
def test_the_live_release_is_installed_and_followed(
    target: Workspace, server: _Server, tmp_path: Path, remote: bool
) -> None:
    client = Client(server.url if remote else target.root, tmp_path / "app")
    assert client.update().release is None and client.usable_version() is None
    first = _publish(target, "a")
    assert client.update() == Outcome("updated", first) and _holds(client.usable_version(), "a")
    assert client.update() == Outcome("unchanged", first)
    second = _publish(target, "b")
    assert client.update() == Outcome("updated", second) and _holds(client.usable_version(), "b")
    sent = server.sent
    rollback(target)
    assert client.update() == Outcome("updated", first) and _holds(client.usable_version(), "a")
    assert server.sent - sent < KILOBYTES * 1000, "an installed version is not downloaded again"
    third = _publish(target, "c")
    assert client.update().release == third
    assert {path.name for path in (tmp_path / "app" / "versions").iterdir()} == {first, third}


def test_the_report_page_is_not_downloaded(target: Workspace, server: _Server, tmp_path: Path) -> None:
    publish(target, target, commit_checked(target, "a", page="report"))
    client = Client(server.url, tmp_path / "app")
    assert client.update().state == "updated"
    assert not list((tmp_path / "app").rglob("report.html"))


def test_a_client_follows_its_channel(target: Workspace, server: _Server, tmp_path: Path) -> None:
    _publish(target, "a")
    staged = publish(target, target, commit_checked(target, "b"), channel="staging").id
    assert Client(server.url, tmp_path / "app", channel="staging").update() == Outcome("updated", staged)


def test_an_interrupted_download_is_resumed(target: Workspace, server: _Server, tmp_path: Path) -> None:
    first = _publish(target, "a")
    client = Client(server.url, tmp_path / "app")
    client.update()
    second = _publish(target, "b")
    server.cut = 200_000
    outcome = client.update()
    assert outcome.state == "kept" and outcome.release == first and "ended after 200000 of" in outcome.reason
    assert _holds(client.usable_version(), "a")
    server.cut, server.sent = None, 0
    assert Client(server.url, tmp_path / "app").update() == Outcome("updated", second)
    assert _holds(client.usable_version(), "b")
    assert server.ranges == 1 and server.sent < 2 * KILOBYTES * 1000 - 150_000


def test_a_server_without_range_support_restarts_the_download(
    target: Workspace, server: _Server, tmp_path: Path
) -> None:
    release = _publish(target, "a")
    client = Client(server.url, tmp_path / "app")
    server.cut, server.no_ranges = 1000, True
    assert client.update().state == "kept"
    server.cut = None
    assert client.update() == Outcome("updated", release) and _holds(client.usable_version(), "a")


@pytest.mark.parametrize("damage", ["changed", "longer", "shorter"])
def test_files_that_do_not_match_the_pointer_are_not_installed(
    target: Workspace, server: _Server, tmp_path: Path, damage: str
) -> None:
    first, client = _publish(target, "a"), Client(server.url, tmp_path / "app")
    client.update()
    second = _publish(target, "b")
    file = Path(target.root, "releases", second, FILES[0])
    good = file.read_bytes()
    file.write_bytes({"changed": good[::-1], "longer": good + b"x" * 10**7, "shorter": good[:-1]}[damage])
    server.sent = 0
    outcome = client.update()
    assert (outcome.state, outcome.release) == ("kept", first) and _holds(client.usable_version(), "a")
    for path in (tmp_path / "app").rglob("*.part"):
        assert path.stat().st_size <= len(good)
    file.write_bytes(good)
    assert client.update() == Outcome("updated", second) and _holds(client.usable_version(), "b")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"release": "../../x"}, "is not a valid release id"),
        ({"version": 2}, "this client reads version 1"),
        ({"files": {}}, "has no files"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64, "path": "x"}}}, "invalid name, path"),
        ({"files": {"x": {"bytes": 1, "sha256": "0" * 64, "path": "../../x"}}}, "invalid name, path"),
        ({"files": {"x": {"bytes": 1, "sha256": "0" * 64, "path": "/etc/passwd"}}}, "invalid name, path"),
        ({"files": {"pointer.json": {"bytes": 1, "sha256": "0" * 64, "path": "x"}}}, "invalid name, path"),
        ({"files": {"x": {"bytes": -1, "sha256": "0" * 64, "path": "x"}}}, "invalid name, path"),
        ({"files": {"x": {"bytes": 10**12, "sha256": "0" * 64, "path": "x"}}}, "more than the"),
        ({"files": {"x": {"bytes": 1, "sha256": "no", "path": "x"}}}, "invalid name, path"),
        ({"files": [1]}, "the pointer is damaged"),
        ({"minimum_task_library": "0.5.0"}, "needs Task Library 0.5.0, this app has 0.4.4"),
        ({"minimum_task_library": "new"}, "the pointer is damaged"),
        ({"fingerprint": "a" * 64}, "was built with encoder e, which this app does not support"),
        ({"padding": "x" * 2**20}, "has more than 1048576 bytes"),
    ],
)
def test_unusable_releases_are_not_installed(
    target: Workspace, server: _Server, tmp_path: Path, values: dict[str, Any], reason: str
) -> None:
    first = _publish(target, "a")
    client = Client(server.url, tmp_path / "app", fingerprints={"f" * 64})
    assert client.update().state == "updated"
    _publish(target, "b")
    _change_pointer(target, **values)
    outcome = client.update()
    assert (outcome.state, outcome.release) == ("kept", first) and reason in outcome.reason
    assert _holds(client.usable_version(), "a")
    assert {path.name for path in (tmp_path / "app").iterdir()} <= {"versions", "incoming", "state.json", ".lock"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_pointer_changes_nothing(target: Workspace, server: _Server, tmp_path: Path, content: bytes) -> None:
    first, client = _publish(target, "a"), Client(server.url, tmp_path / "app")
    client.update()
    Path(target.root, CURRENT).write_bytes(content)
    outcome = client.update()
    assert (outcome.state, outcome.release) == ("kept", first) and "the pointer is damaged" in outcome.reason


@pytest.mark.parametrize("status", [403, 404, 500, 503])
@pytest.mark.parametrize("end", ["CURRENT.json", FILES[1]])
def test_a_server_that_fails_changes_nothing(
    target: Workspace, server: _Server, tmp_path: Path, status: int, end: str
) -> None:
    first, client = _publish(target, "a"), Client(server.url, tmp_path / "app")
    client.update()
    second = _publish(target, "b")
    server.status = {end: status}
    outcome = client.update()
    assert (outcome.state, outcome.release) == ("kept", first) and str(status) in outcome.reason
    server.status = {}
    assert client.update() == Outcome("updated", second)


def test_an_offline_client_keeps_the_installed_version(target: Workspace, server: _Server, tmp_path: Path) -> None:
    first, client = _publish(target, "a"), Client(server.url, tmp_path / "app")
    client.update()
    server.shutdown()
    server.server_close()
    outcome = client.update()
    assert (outcome.state, outcome.release) == ("kept", first) and outcome.reason
    assert _holds(client.usable_version(), "a")


def test_a_release_deleted_during_the_download_is_replaced_by_the_next(
    target: Workspace, server: _Server, tmp_path: Path
) -> None:
    gone = _publish(target, "a")

    def replace() -> None:
        server.on_file = lambda: None
        _publish(target, "b")
        target.storage.delete_folder(f"releases/{gone}")

    server.on_file = replace
    outcome = Client(server.url, tmp_path / "app").update()
    assert outcome == Outcome("updated", live_release(target)) and outcome.release != gone


def test_a_release_that_does_not_open_is_given_up(target: Workspace, server: _Server, tmp_path: Path) -> None:
    def probe(folder: Path) -> None:
        if _holds(folder, "b"):
            raise RuntimeError("not a model")

    first, client = _publish(target, "a"), Client(server.url, tmp_path / "app", probe=probe)
    client.update()
    _publish(target, "b")
    for _ in range(3):
        outcome = client.update()
        assert (outcome.state, outcome.release) == ("kept", first) and "not a model" in outcome.reason
    server.sent = 0
    assert "did not open 3 times" in client.update().reason and server.sent < 10_000
    assert _holds(client.usable_version(), "a")
    third = _publish(target, "c")
    assert client.update() == Outcome("updated", third)
    rollback(target)
    assert Client(server.url, tmp_path / "app", task_library="0.4.5").update().state == "updated", (
        "another app version tries again"
    )


def test_the_previous_version_is_used_while_the_current_one_does_not_open(target: Workspace, tmp_path: Path) -> None:
    broken = ""

    def probe(folder: Path) -> None:
        if broken and _holds(folder, broken):
            raise MemoryError

    client = Client(target.root, tmp_path / "app", probe=probe)
    for name in ("a", "b"):
        _publish(target, name)
        client.update()
    broken = "b"
    assert _holds(client.usable_version(), "a")
    broken = ""
    assert _holds(client.usable_version(), "b"), "the file itself was intact"


@pytest.mark.parametrize("damage", ["changed", "cut", "removed", "folder"])
def test_a_damaged_version_is_downloaded_again(target: Workspace, tmp_path: Path, damage: str) -> None:
    def probe(folder: Path) -> None:
        assert _holds(folder, "a") or _holds(folder, "b")

    client = Client(target.root, tmp_path / "app", probe=probe)
    for name in ("a", "b"):
        release = _publish(target, name)
        client.update()
    folder = client.usable_version()
    assert folder and _holds(folder, "b")
    file = folder / FILES[0]
    if damage == "folder":
        folder.rename(tmp_path / "gone")
    elif damage == "removed":
        file.unlink()
    else:
        file.write_text(file.read_text()[::-1] if damage == "changed" else file.read_text()[:-1])
    assert _holds(client.usable_version(), "a")
    assert client.update() == Outcome("updated", release) and _holds(client.usable_version(), "b")


@pytest.mark.parametrize("published", [("b",), ("c",), ("c", "d")])
def test_an_update_by_another_process_while_a_version_is_found_damaged_is_not_lost(
    target: Workspace, tmp_path: Path, published: tuple[str, ...]
) -> None:
    waiting = [*published]

    def probe(folder: Path) -> None:
        while waiting:  # another process updates while this one opens the damaged version
            name = waiting.pop(0)
            if name != "b":
                _publish(target, name)
            assert Client(target.root, tmp_path / "app").update().state == "updated"
        assert any(_holds(folder, name) for name in "abcd")

    for name in ("a", "b"):
        _publish(target, name)
        Client(target.root, tmp_path / "app").update()
    folder = Client(target.root, tmp_path / "app").usable_version()
    assert folder and _holds(folder, "b")
    (folder / FILES[0]).unlink()
    client = Client(target.root, tmp_path / "app", probe=probe)
    client.usable_version()
    assert _holds(client.usable_version(), published[-1])
    assert client.update() == Outcome("unchanged", live_release(target))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"current": "../x", "previous": null, "failures": {}}', None])
def test_a_damaged_state_is_rebuilt(target: Workspace, tmp_path: Path, content: bytes | None) -> None:
    client = Client(target.root, tmp_path / "app")
    for name in ("a", "b"):
        release = _publish(target, name)
        client.update()
    state = tmp_path / "app" / "state.json"
    state.unlink() if content is None else state.write_bytes(content)
    (tmp_path / "app" / "versions" / "half").mkdir()
    assert _holds(client.usable_version(), "b")
    assert client.update() == Outcome("unchanged", release)


def test_a_kill_at_any_moment_loses_nothing(target: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a kill at every rename of an update, since renames are what changes the state."""

    class Died(BaseException):
        pass

    _publish(target, "a")
    Client(target.root, tmp_path / "app").update()
    release = _publish(target, "b")
    renames = {name: getattr(Path, name) for name in ("rename", "replace")}
    left = 0

    def dying(name: str) -> Callable[[Path, Path], Path]:
        def rename(self: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise Died
            return renames[name](self, target)  # type: ignore[no-any-return]

        return rename

    steps, survived = 0, False
    while not survived:
        app = tmp_path / f"app{steps}"
        shutil.copytree(tmp_path / "app", app)
        with monkeypatch.context() as patch:
            for name in renames:
                patch.setattr(Path, name, dying(name))
            left = steps
            with contextlib.suppress(Died):
                survived = Client(target.root, app).update().state == "updated"
        assert _holds(Client(target.root, app).usable_version(), "b" if survived else "a")
        assert Client(target.root, app).update() == Outcome("unchanged" if survived else "updated", release)
        steps += 1
    assert steps > 4


def test_insecure_sources_are_refused(target: Workspace, server: _Server, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is not https"):
        Client("http://example.com/apps", tmp_path / "app")


def test_the_command_prints_its_result(target: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release, folder = _publish(target, "a"), str(tmp_path / "app")
    assert main([target.root, folder]) == 0
    assert f"updated: {release} is installed" in capsys.readouterr().out
    assert main([target.root, folder, "staging"]) == 1
    assert "kept:" in capsys.readouterr().out
    assert main([]) == 2
