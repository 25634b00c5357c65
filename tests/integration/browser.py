"""Headless Chromium for tests of web pages: an installed browser, or else Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.cached import lock

INSTALL_SECONDS = 600
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
"""Disable the sandbox, which containers do not support, and Chromium's own network requests."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Yields a browser; the test closes the pages that it opens with `browser.new_page()`."""
    path = program()
    expect.set_options(timeout=30_000)  # milliseconds: rendering is slow on a busy machine
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield launched
        launched.close()


def program() -> str:
    """Returns the path of the browser, installing it if necessary; skips the test if that is impossible."""
    with lock("chromium"):
        return shutil.which("chromium") or shutil.which("google-chrome") or _install()


def _install() -> str:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        pytest.skip("Chromium is not installed, and installing it requires apt-get and root")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            [apt, *arguments], capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False, env=environment
        )
        if done.returncode:
            pytest.skip(f"Chromium cannot be installed: {done.stderr.strip()[-300:]}")
    path = shutil.which("chromium")
    assert path, "Debian's package chromium contains no program chromium"
    return path
