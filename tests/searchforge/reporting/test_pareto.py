"""Which points of a trade-off are worth showing."""

from __future__ import annotations

from searchforge.reporting.pareto import pareto


def test_the_front_is_what_nothing_faster_reaches() -> None:
    best = [point(ms=1, recall=0.5), point(ms=2, recall=0.7), point(ms=4, recall=0.9)]
    beaten = [
        point(ms=2, recall=0.6),  # another one of the same time has more
        point(ms=3, recall=0.7),  # a faster one has as much
        point(ms=3, recall=0.4),
        point(ms=9, recall=0.9),
    ]
    assert pareto([*beaten, *best[::-1]]) == best


def test_the_front_of_one_point_is_that_point() -> None:
    assert pareto([point(ms=1, recall=0.0)]) == [point(ms=1, recall=0.0)]
    assert pareto([]) == []


def point(ms: float, recall: float) -> dict[str, float]:
    return {"search_ms": ms, "recall_at_10": recall}
