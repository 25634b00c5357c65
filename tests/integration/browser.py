"""Headless Chromium for tests of pages: the machine's own, or Debian's package where it can be installed."""

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
"""Chromium's sandbox needs what containers do not give; the rest keeps it from asking the network by itself."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser; `browser.new_page()` opens a page that the test closes."""
    path = program()
    expect.set_options(timeout=30_000)  # milliseconds: a busy machine draws late
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield launched
        launched.close()


def program() -> str:
    """The path of the browser, which is installed where there is none; the test is skipped where that cannot be."""
    with lock("chromium"):
        return shutil.which("chromium") or shutil.which("google-chrome") or _install()


def _install() -> str:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        pytest.skip("Chromium is not installed, and cannot be: that takes apt-get and root")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            [apt, *arguments], capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False, env=environment
        )
        if done.returncode:
            pytest.skip(f"Chromium cannot be installed: {done.stderr.strip()[-300:]}")
    path = shutil.which("chromium")
    assert path, "Debian's package chromium has no program of that name"
    return path
