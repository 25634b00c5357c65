"""A short form of the races of tests/bench/release_races.py, on a local folder."""

from __future__ import annotations

from pathlib import Path

from tests.bench.release_races import race


def test_readers_see_whole_releases_while_publishers_race_and_die(tmp_path: Path) -> None:
    report = race(str(tmp_path / "public"), rounds=5, publishers=6, readers=60, kills=2, mixed=4)
    assert report["rounds_with_one_winner"] + report["rounds_won_by_the_killed"] == 5
    assert "rounds_without_exactly_one_write" not in report and "rounds_without_exactly_one_winner" not in report
    assert report["mixed_rounds"] == 4
    assert report["reads"] > 60 and report["violations"] == 0 and report["damaged_releases"] == 0
    assert not [name for name in report if "failed" in name]
