"""Fixtures of the reader's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from searchforge.processes import isolated
from tests import lookup_encoder


@pytest.fixture(scope="session")
def task_library() -> Iterator[isolated.Session]:
    """A process that writes encoders and searches indexes with the Task Library."""
    with isolated.Session(lookup_encoder.MODULE) as session:
        yield session
