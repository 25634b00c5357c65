"""Pareto front of the tuner's settings in search time and recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pareto(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the points with a higher recall than all faster ones, in ascending order of both.

    Args:
      points: Settings that the tuner tried, each with `search_ms` and `recall_at_10`.
    """
    front: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["search_ms"], -point["recall_at_10"])):
        if not front or point["recall_at_10"] > front[-1]["recall_at_10"]:
            front.append(point)
    return front
