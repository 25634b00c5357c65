"""What every test run shares: the order of the tests."""

from __future__ import annotations

import pytest

_FIRST = "tests/test_end_to_end.py"
"""Takes the longest, on one processor: what the other processors have left is shared out meanwhile."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the longest tests to the front."""
    items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))
