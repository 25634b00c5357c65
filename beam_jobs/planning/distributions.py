"""Distributions that can be summed up over shards: count, sum, least and greatest value, as Beam's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Distribution:
    """Of values that were observed one by one; without any, all fields are 0."""

    count: int = 0
    sum: float = 0
    min: float = 0
    max: float = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution:
        """Summarizes values."""
        found = list(values)
        return cls(len(found), sum(found), min(found), max(found)) if found else cls()

    @classmethod
    def total(cls, parts: Iterable[Distribution]) -> Distribution:
        """Merges distributions."""
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
        """0 without values."""
        return self.sum / self.count if self.count else 0.0
