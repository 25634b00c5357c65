"""Gates say what was measured, what was demanded, and by how much it was missed."""

from __future__ import annotations

import pytest

from serving_check.gate import at_least, at_most, no_faults


@pytest.mark.parametrize(("measured", "passed"), [(0.9, True), (0.91, True), (0.8999, False), (None, False)])
def test_at_least(measured: float | None, passed: bool) -> None:
    assert at_least("recall_at_10", measured, 0.9).passed is passed


@pytest.mark.parametrize(("measured", "passed"), [(6.0, True), (5.9, True), (6.1, False), (None, False)])
def test_at_most(measured: float | None, passed: bool) -> None:
    assert at_most("latency_p50_ms", measured, 6.0).passed is passed


def test_a_failed_gate_names_measured_limit_and_difference() -> None:
    assert at_least("recall_at_10", 0.75, 0.9).detail == "0.75, at least 0.9 demanded: 0.15 too low"
    assert at_most("latency_p50_ms", 8.5, 6.0).detail == "8.5, at most 6 allowed: 2.5 too high"


def test_what_was_not_measured_says_why() -> None:
    assert at_least("r_at_10", None, 0.5, "no captions").detail == "no captions; at least 0.5 is demanded"


def test_faults_are_listed_but_not_endlessly() -> None:
    gate = no_faults("known_ids", [f"unknown id {i}" for i in range(9)], "fine")
    assert not gate.passed
    assert gate.measured == 9
    assert gate.detail == "unknown id 0; unknown id 1; unknown id 2; and 6 more"
    assert no_faults("known_ids", [], "fine").detail == "fine"
