"""Fixtures for tests of indexes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from searchforge.processes import isolated
from tests import lookup_encoder


@pytest.fixture(scope="module")
def task_library() -> Iterator[isolated.Session]:
    """A process that writes and searches indexes with the Task Library."""
    with isolated.Session(lookup_encoder.MODULE) as session:
        yield session
