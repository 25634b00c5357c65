"""Short forms of what tests/bench proves at length: `reindex` under kill -9, and day after day."""

from __future__ import annotations

from pathlib import Path

from tests.bench.reindex_kills import run_kills
from tests.bench.reindex_soak import run_soak


def test_killed_runs_end_with_the_release_of_an_undisturbed_one(tmp_path: Path) -> None:
    assert run_kills(4, tmp_path, seed=1)["kills"] >= 4


def test_days_of_changes_end_with_the_index_of_a_build_from_nothing(tmp_path: Path) -> None:
    report = run_soak(5, tmp_path, seed=3)
    assert sum(report["changes"].values()) == 5
