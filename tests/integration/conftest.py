"""Real servers for the integration tests; where one cannot be had, its tests are skipped with the reason."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.browser import browser as browser
from tests.integration.gcs_server import NoServerError, serving_gcs


@pytest.fixture(scope="session")
def gcs_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a GCS server on localhost."""
    try:
        with serving_gcs(tmp_path_factory.mktemp("gcs")) as url:
            yield url
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def bucket(gcs_host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A fresh bucket's gs:// URL, with the environment that makes clients use the server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_host)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from searchforge.gcs_storage import gcs_client

    name = f"bucket-{uuid.uuid4().hex}"
    gcs_client().create_bucket(name)
    return f"gs://{name}"
