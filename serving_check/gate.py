"""Gates: what a searcher must be for it to ship, what it was measured to be, and by how much it misses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """One gate.

    Attributes:
      measured: None where it could not be measured, which fails the gate.
      limit: what was demanded.
      detail: one sentence for people: measured, limit and the difference, or what was found.
    """

    name: str
    measured: float | None
    limit: float | None
    passed: bool
    detail: str


def at_least(name: str, measured: float | None, limit: float, unmeasured: str = "not measured") -> Gate:
    """Demands a value of `limit` or more; `unmeasured` says why there is none."""
    if measured is None:
        return Gate(name, None, limit, False, f"{unmeasured}; at least {limit:g} is demanded")
    difference = f"{abs(measured - limit):.4g} {'above' if measured >= limit else 'too low'}"
    return Gate(name, measured, limit, measured >= limit, f"{measured:.4g}, at least {limit:g} demanded: {difference}")


def at_most(name: str, measured: float | None, limit: float) -> Gate:
    """Demands a value of `limit` or less."""
    if measured is None:
        return Gate(name, None, limit, False, f"not measured; at most {limit:g} is allowed")
    difference = f"{abs(measured - limit):.4g} {'below' if measured <= limit else 'too high'}"
    return Gate(name, measured, limit, measured <= limit, f"{measured:.4g}, at most {limit:g} allowed: {difference}")


def no_faults(name: str, faults: list[str], found: str) -> Gate:
    """Demands that there are no faults; `found` is what is said when there are none."""
    shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    return Gate(name, float(len(faults)), 0.0, not faults, shown or found)
