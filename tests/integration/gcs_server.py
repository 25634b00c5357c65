"""A Google Cloud Storage server on localhost: fake-gcs-server, built from the Go module proxy."""

from __future__ import annotations

import contextlib
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.integration import fetched
from tests.integration.ports import free_port

FAKE_GCS_SERVER = "github.com/fsouza/fake-gcs-server@v1.52.2"
START_SECONDS = 30


def program() -> Path:
    """Returns the server program; skips the test if it cannot be built."""
    return fetched.go_program(FAKE_GCS_SERVER)


@contextlib.contextmanager
def serving_gcs(folder: Path) -> Iterator[str]:
    """Runs the server, which logs to `folder`; yields its address."""
    binary = program()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-public-host"]
    log = folder / "log"
    with log.open("wb") as file:
        server = subprocess.Popen([binary, *options, f"127.0.0.1:{port}"], stdout=file, stderr=file)
        try:
            _wait(url, log)
            yield url
        finally:
            server.kill()
            server.wait()


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/storage/v1/b?project=emulator", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(f"the GCS server did not start within {START_SECONDS} s: {log.read_text()[-500:]}")
