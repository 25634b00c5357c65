"""What every test run shares: the order of the tests."""

from __future__ import annotations

import pytest

_FIRST = ("tests/test_end_to_end.py", "tests/trainer/test_train.py")
"""Files that set much up for few tests."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves these files to the front: what comes last may be taken over by another process, which sets it up again."""
    items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))
