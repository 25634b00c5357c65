"""Races of publishers and readers in a local folder; see tests/bench/release_races.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.release_races import race


@pytest.mark.parametrize(
    ("rounds", "publishers", "readers", "kills", "mixed"),
    [(4, 5, 40, 2, 3), pytest.param(60, 20, 500, 15, 30, marks=pytest.mark.proof)],
)
def test_readers_see_complete_releases_while_publishers_race_and_are_killed(
    tmp_path: Path, rounds: int, publishers: int, readers: int, kills: int, mixed: int
) -> None:
    report = race(str(tmp_path / "public"), rounds, publishers, readers, kills, mixed)
    assert report["rounds_with_one_winner"] + report["rounds_won_by_the_killed"] == rounds
    assert "rounds_without_exactly_one_write" not in report and "rounds_without_exactly_one_winner" not in report
    assert report["mixed_rounds"] == mixed
    assert report["reads"] > readers and report["violations"] == 0 and report["damaged_releases"] == 0
    assert not [name for name in report if "failed" in name]
