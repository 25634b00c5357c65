"""Mergeable summaries of observed values (count, sum, minimum, maximum), like Beam's distribution metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Distribution:
    """Summary of observed values; all fields are 0 if there are none."""

    count: int = 0
    sum: float = 0
    min: float = 0
    max: float = 0

    @classmethod
    def from_values(cls, values: Iterable[float]) -> Distribution:
        """Returns the summary of values."""
        found = list(values)
        return cls(len(found), sum(found), min(found), max(found)) if found else cls()

    @classmethod
    def merge(cls, parts: Iterable[Distribution]) -> Distribution:
        """Returns the summary of the values of all parts."""
        found = [part for part in parts if part.count]
        if not found:
            return cls()
        return cls(
            sum(part.count for part in found),
            sum(part.sum for part in found),
            min(part.min for part in found),
            max(part.max for part in found),
        )

    @property
    def mean(self) -> float:
        """Mean value, or 0 if there are no values."""
        return self.sum / self.count if self.count else 0.0
