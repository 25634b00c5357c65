"""A short form of tests/bench/release_races.py on a Google Cloud Storage server."""

from __future__ import annotations

import pytest

from tests.bench.release_races import race

pytestmark = pytest.mark.integration


def test_readers_see_complete_releases_while_publishers_race_and_are_killed(bucket: str) -> None:
    report = race(f"{bucket}/public", rounds=5, publishers=5, readers=60, kills=2, mixed=4)
    assert report["rounds_with_one_winner"] + report["rounds_won_by_the_killed"] == 5
    assert "rounds_without_exactly_one_write" not in report and "rounds_without_exactly_one_winner" not in report
    assert report["mixed_rounds"] == 4
    assert report["reads"] > 0 and report["violations"] == 0 and report["damaged_releases"] == 0
    assert not [name for name in report if "failed" in name]
