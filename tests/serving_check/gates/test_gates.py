"""The detail of a gate states the measured value and the limit."""

from __future__ import annotations

import math

import pytest

from serving_check.gate import at_least, at_most, no_faults


@pytest.mark.parametrize(("measured", "passed"), [(0.9, True), (0.91, True), (0.8999, False), (None, False)])
def test_at_least(measured: float | None, passed: bool) -> None:
    assert at_least("recall_at_10", measured, 0.9).passed is passed


@pytest.mark.parametrize(("measured", "passed"), [(6.0, True), (5.9, True), (6.1, False), (None, False)])
def test_at_most(measured: float | None, passed: bool) -> None:
    assert at_most("latency_p50_ms", measured, 6.0).passed is passed


def test_a_failed_gate_states_the_measured_value_and_the_limit() -> None:
    assert at_least("recall_at_10", 0.75, 0.9).detail == "0.75, below the minimum of 0.90"
    assert at_most("latency_p50_ms", 8.5, 6.0).detail == "8.50, above the maximum of 6"
    assert at_most("searcher_bytes", 31_500_000, 30_000_000).detail == "31,500,000, above the maximum of 30,000,000"


def test_a_passed_gate_states_the_measured_value_and_the_limit() -> None:
    assert at_least("recall_at_10", 0.9534, 0.9).detail == "0.9534 meets the minimum of 0.90"
    assert at_most("latency_p50_ms", 4.731, 6.0).detail == "4.731 is within the maximum of 6"


def test_a_value_that_barely_misses_its_limit_has_enough_digits_to_differ_from_it() -> None:
    assert at_least("recall_at_10", 0.899996, 0.9).detail == "0.899996, below the minimum of 0.90"


@pytest.mark.parametrize("measured", [math.nan, math.inf])
def test_a_value_that_is_not_finite_fails(measured: float) -> None:
    assert not at_most("latency_p50_ms", measured, 6.0).passed


def test_a_gate_without_a_measured_value_states_the_reason() -> None:
    assert at_least("r_at_10", None, 0.5, "no captions").detail == "no captions; the minimum is 0.50"


def test_only_the_first_faults_are_listed() -> None:
    gate = no_faults("known_ids", [f"unknown id {i}" for i in range(9)], "fine")
    assert not gate.passed
    assert gate.measured == 9
    assert gate.detail == "unknown id 0; unknown id 1; unknown id 2; and 6 more"
    assert no_faults("known_ids", [], "fine").detail == "fine"
