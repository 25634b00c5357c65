"""Hooks and fixtures of all tests: their order, and log messages on stderr as the commands show them."""

from __future__ import annotations

import pytest

from searchforge.console import logs

_FIRST = ("tests/test_end_to_end.py", "tests/trainer/test_train.py")
"""Files that set much up for few tests."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves these files to the front: what comes last may be taken over by another process, which sets it up again."""
    items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))


@pytest.fixture(autouse=True)
def console_logs() -> None:
    """Shows log messages on stderr, so that tests can assert them."""
    logs.configure("text")
