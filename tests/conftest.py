"""Hooks and fixtures shared by all tests."""

from __future__ import annotations

import pytest

from searchforge.console import logs

_FIRST = ("tests/test_end_to_end.py", "tests/trainer/test_train.py")
"""Test files with an expensive set-up for few tests."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs these files first, because pytest-xdist may split the last ones between processes, each of which sets up."""
    items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))


@pytest.fixture(autouse=True)
def console_logs() -> None:
    """Writes log messages to stderr, as the commands do, so that tests can assert them."""
    logs.configure("text")
