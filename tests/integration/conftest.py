"""Real servers for the integration tests. Tests are skipped with a reason if a server cannot be obtained."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration import browser as chromium
from tests.integration import gcs_server
from tests.integration.browser import browser as browser

_CONCURRENT_FETCHES = 3

_FIRST = ("test_ray_cluster.py", "test_report_browser.py", "test_serve_browser.py")
"""Test files that need nothing built; they run first, while the requirements of the others are built."""


_SHARED = {"gcs_host": gcs_server.program, "browser": chromium.program}
"""Fetch functions of shared fixtures, by fixture name. Test modules list further ones as `FETCHES`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the tests of `_FIRST` before the others."""
    order = {name: position for position, name in enumerate(_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(_FIRST)))


@pytest.fixture(scope="session", autouse=True)
def prefetch(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fetches and builds the requirements of later tests while earlier ones run."""
    fetches: dict[Callable[[], Any], None] = {}  # an ordered set
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":  # only in one process
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.get_closest_marker("integration"):
                fetches |= dict.fromkeys(_SHARED[name] for name in item.fixturenames if name in _SHARED)
                fetches |= dict.fromkeys(getattr(item.module, "FETCHES", ()))
    with ThreadPoolExecutor(_CONCURRENT_FETCHES) as pool:
        for fetch in fetches:
            pool.submit(fetch)  # a failure recurs, and is reported, in the test that needs it
        yield
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def gcs_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yields the address of a GCS server on localhost."""
    with gcs_server.serving_gcs(tmp_path_factory.mktemp("gcs")) as url:
        yield url


@pytest.fixture
def bucket(gcs_host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Returns the gs:// URL of an empty bucket, and makes clients use the server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_host)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from searchforge.storage.gcs_client import gcs_client

    name = f"bucket-{uuid.uuid4().hex}"
    gcs_client().create_bucket(name)
    return f"gs://{name}"
