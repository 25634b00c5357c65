"""Notifications are sent to a webhook and a command; their failures are logged."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.reindex import journal
from infra.reindex.journal import Run
from infra.reindex.notify import OUTPUT_BYTES, notify
from searchforge.config import ReindexConfig
from tests.infra.manual_clock import ManualClock

FAILED = Run(run="r1", state="failed", started=journal.now(), beat=journal.now(), error="no space", failures=2)
PUBLISHED = FAILED.model_copy(update={"state": "published", "release": "abc", "error": ""})


@contextmanager
def _webhook(*answers: int, location: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serves these statuses in turn, repeating the last one; yields the URL and the entries received."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answers[min(len(received), len(answers)) - 1])
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook/secret", received
        server.shutdown()


@pytest.mark.parametrize(
    ("notify_on", "run", "told"),
    [
        ("never", FAILED, False),
        ("failure", FAILED, True),
        ("failure", PUBLISHED, False),
        ("change", FAILED, True),
        ("change", PUBLISHED, True),
        ("change", FAILED.model_copy(update={"state": "unchanged"}), False),
    ],
)
def test_configured_results_are_sent_to_webhook_and_command(
    tmp_path: Path, notify_on: Any, run: Run, told: bool
) -> None:
    file = tmp_path / "told.json"
    with _webhook(200) as (url, received):
        settings = ReindexConfig(notify_on=notify_on, notify_webhook=url, notify_command=("tee", str(file)))
        notify(settings, run)
    assert received == ([run.model_dump(mode="json")] if told else [])
    assert file.exists() == told
    if told:
        assert Run.model_validate_json(file.read_bytes()) == run


@pytest.mark.parametrize(("answers", "requests"), [((503, 429, 200), 3), ((500,), 3), ((404,), 1), ((200,), 1)])
def test_an_overloaded_webhook_is_retried(
    capsys: pytest.CaptureFixture[str], answers: tuple[int, ...], requests: int
) -> None:
    clock = ManualClock()
    with _webhook(*answers) as (url, received):
        notify(ReindexConfig(notify_webhook=url), FAILED, clock=clock)
    assert len(received) == requests
    assert clock.slept == [1.0, 2.0][: requests - 1]
    told = capsys.readouterr().err
    assert (f"127.0.0.1 returned status {answers[-1]}" in told) == (answers[-1] != 200)
    assert "secret" not in told


def test_a_redirect_is_not_followed(capsys: pytest.CaptureFixture[str]) -> None:
    with _webhook(200) as (other, reached), _webhook(302, location=other) as (url, _):
        notify(ReindexConfig(notify_webhook=url), FAILED)
    assert reached == []
    assert "returned status 302" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    ["file:///etc/secret", "ftp://h/secret", "secret", "http://", "http://[secret", "http://h:secret/", "//secret"],
)
def test_only_http_urls_are_posted_to(capsys: pytest.CaptureFixture[str], url: str) -> None:
    notify(ReindexConfig(notify_webhook=url), FAILED, clock=ManualClock())
    told = capsys.readouterr().err
    assert "reindex.notify_webhook was not notified of run r1" in told and "secret" not in told


def test_an_unreachable_webhook_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with _webhook(200) as (url, _):
        pass
    notify(ReindexConfig(notify_webhook=url), FAILED, clock=ManualClock())
    assert "127.0.0.1 cannot be reached (Connection refused)" in capsys.readouterr().err


def test_a_hanging_command_is_killed_with_its_children(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "child"
    script = f"sleep 600 & echo $! > {file}; wait"
    notify(ReindexConfig(notify_command=("sh", "-c", script)), FAILED, timeout=2.0)
    assert "'sh' was killed after 2 s" in capsys.readouterr().err
    state = Path(f"/proc/{int(file.read_text())}/stat")
    while state.exists() and state.read_text().split()[2] != "Z":  # until the kernel has ended it
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("/no/such/program",), "'/no/such/program' cannot be run (No such file or directory)"),
        (("sh", "-c", "echo out; echo bad mail >&2; exit 3"), "'sh' exited with code 3: out bad mail"),
        (("false",), "'false' exited with code 1: no output"),
        (("sh", "-c", "kill -9 $$"), "'sh' exited with code -9"),
        (("\0",), "cannot be run"),
    ],
)
def test_a_failing_command_is_logged(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], message: str
) -> None:
    notify(ReindexConfig(notify_command=command), FAILED)
    assert message in capsys.readouterr().err


def test_a_commands_output_is_captured_and_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    notify(ReindexConfig(notify_command=("sh", "-c", "yes secret | head -c 9000000")), FAILED)
    assert capfd.readouterr() == ("", "")
    notify(ReindexConfig(notify_command=("sh", "-c", "yes noise | head -c 9000000; exit 1")), FAILED)
    assert 0 < len(capfd.readouterr().err) < 2 * OUTPUT_BYTES


def test_a_command_that_ignores_its_input_does_not_block() -> None:
    long = FAILED.model_copy(update={"error": "x" * 10**6})
    notify(ReindexConfig(notify_command=("sh", "-c", "exit 0")), long)


def test_arguments_are_passed_verbatim(tmp_path: Path) -> None:
    notify(ReindexConfig(notify_command=("tee", f"{tmp_path}/a b; $(touch x)*")), FAILED)
    assert [path.name for path in tmp_path.iterdir()] == ["a b; $(touch x)*"]
