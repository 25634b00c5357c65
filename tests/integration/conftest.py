"""Real servers for the integration tests; where one cannot be had, its tests are skipped with the reason."""

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

_FETCHED_AT_ONCE = 3

_FIRST = ("test_ray_cluster.py", "test_report_browser.py", "test_serve_browser.py")
"""Files of tests that need nothing built: what the others need is built meanwhile."""


_SHARED = {"gcs_host": gcs_server.program, "browser": chromium.program}
"""What these fixtures fetch, by fixture name; a test module lists whatever else it needs as `FETCHES`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of `_FIRST` before the others."""
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(_FIRST)))


@pytest.fixture(scope="session", autouse=True)
def fetching_ahead(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fetches and builds what later tests need while earlier ones run; who needs it at once waits for it."""
    fetches: dict[Callable[[], Any], None] = {}  # an ordered set
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":  # one of all processes does
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.get_closest_marker("integration"):
                fetches |= dict.fromkeys(_SHARED[name] for name in item.fixturenames if name in _SHARED)
                fetches |= dict.fromkeys(getattr(item.module, "FETCHES", ()))
    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
        for fetch in fetches:
            pool.submit(fetch)  # if it fails, it fails again where it is needed, which then is told
        yield
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def gcs_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a GCS server on localhost."""
    with gcs_server.serving_gcs(tmp_path_factory.mktemp("gcs")) as url:
        yield url


@pytest.fixture
def bucket(gcs_host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A fresh bucket's gs:// URL, with the environment that makes clients use the server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_host)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from searchforge.storage.gcs_client import gcs_client

    name = f"bucket-{uuid.uuid4().hex}"
    gcs_client().create_bucket(name)
    return f"gs://{name}"
