"""Real servers for the integration tests; where one cannot be had, its tests are skipped with the reason."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.browser import browser as browser

FAKE_GCS_SERVER = "github.com/fsouza/fake-gcs-server@v1.52.2"
BUILD_SECONDS = 600
START_SECONDS = 30


@pytest.fixture(scope="session")
def gcs_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a GCS server on localhost, built from the Go module proxy."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed, so the GCS server cannot be built")
    folder = tmp_path_factory.mktemp("go")
    built = subprocess.run(
        [go, "install", FAKE_GCS_SERVER],
        env={**os.environ, "GOBIN": str(folder)},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if built.returncode:
        pytest.skip(f"the GCS server cannot be built: {built.stderr.strip()[-300:]}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-public-host"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([folder / "fake-gcs-server", *options, f"127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            _wait(url, folder / "log")
            yield url
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def bucket(gcs_host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A fresh bucket's gs:// URL, with the environment that makes clients use the server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_host)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from searchforge.gcs_storage import gcs_client

    name = f"bucket-{uuid.uuid4().hex}"
    gcs_client().create_bucket(name)
    return f"gs://{name}"


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/storage/v1/b?project=emulator", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the GCS server did not start within {START_SECONDS} s: {log.read_text()[-500:]}")
