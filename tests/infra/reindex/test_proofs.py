"""Short forms of the proofs in tests/bench: `reindex` with random kills, and over many days."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.reindex_kills import KILLS_PER_ROUND, run_kills
from tests.bench.reindex_soak import SETTLING_CYCLES, run_soak


@pytest.mark.parametrize(("kills", "in_a_round"), [(3, 3), pytest.param(40, KILLS_PER_ROUND, marks=pytest.mark.proof)])
def test_killed_runs_produce_the_release_of_an_uninterrupted_one(tmp_path: Path, kills: int, in_a_round: int) -> None:
    assert run_kills(kills, tmp_path, seed=1, images=24, kills_per_round=in_a_round)["kills"] >= kills


@pytest.mark.parametrize("days", [3, pytest.param(SETTLING_CYCLES + 10, marks=pytest.mark.proof)])
def test_days_of_changes_produce_the_index_of_a_build_from_scratch(tmp_path: Path, days: int) -> None:
    report = run_soak(days, tmp_path, seed=3)
    assert sum(report["changes"].values()) == days
