"""The Pareto front contains the points with a higher recall than all faster ones."""

from __future__ import annotations

from searchforge.reporting.pareto import pareto


def test_points_that_a_faster_one_matches_are_left_out() -> None:
    best = [point(ms=1, recall=0.5), point(ms=2, recall=0.7), point(ms=4, recall=0.9)]
    beaten = [
        point(ms=2, recall=0.6),  # a point of the same time has a higher recall
        point(ms=3, recall=0.7),  # dominated: a faster point has the same recall
        point(ms=3, recall=0.4),
        point(ms=9, recall=0.9),
    ]
    assert pareto([*beaten, *best[::-1]]) == best


def test_the_front_of_one_point_is_that_point() -> None:
    assert pareto([point(ms=1, recall=0.0)]) == [point(ms=1, recall=0.0)]
    assert pareto([]) == []


def point(ms: float, recall: float) -> dict[str, float]:
    return {"search_ms": ms, "recall_at_10": recall}
