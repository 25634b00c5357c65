"""A gate: a requirement that a searcher must meet to be released, and how it met or missed it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """The outcome of one gate.

    Attributes:
      measured: Measured value; None if it could not be measured, which fails the gate.
      limit: Value that was required.
      detail: One sentence with the measured value and the limit, or with what was found.
    """

    name: str
    measured: float | None
    limit: float | None
    passed: bool
    detail: str


def at_least(name: str, measured: float | None, limit: float, unmeasured: str = "not measured") -> Gate:
    """Requires a value of `limit` or more; `unmeasured` says why there is none."""
    if measured is None:
        return Gate(name, None, limit, False, f"{unmeasured}; the minimum is {_number(limit)}")
    passed = measured >= limit
    relation = " meets" if passed else ", below"
    return Gate(name, measured, limit, passed, f"{_number(measured, limit)}{relation} the minimum of {_number(limit)}")


def at_most(name: str, measured: float | None, limit: float) -> Gate:
    """Requires a value of `limit` or less."""
    if measured is None:
        return Gate(name, None, limit, False, f"not measured; the maximum is {_number(limit)}")
    passed = measured <= limit
    relation = " is within" if passed else ", above"
    return Gate(name, measured, limit, passed, f"{_number(measured, limit)}{relation} the maximum of {_number(limit)}")


def no_faults(name: str, faults: list[str], passed_detail: str) -> Gate:
    """Requires that there are no faults; `passed_detail` is the gate's sentence if there are none."""
    listed = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    return Gate(name, float(len(faults)), 0.0, not faults, listed or passed_detail)


def _number(value: float, other: float | None = None) -> str:
    """Returns a number with at least two decimals if it has any, and enough digits to tell it from another."""
    if not math.isfinite(value):
        return str(value)
    digits = 4
    while other is not None and value != other and float(f"{value:.{digits}g}") == other:
        digits += 1
    rounded = float(f"{value:.{digits}g}") if abs(value) < 10**digits else round(value)
    if rounded == int(rounded):
        return f"{rounded:,.0f}"
    return f"{rounded:,.2f}" if rounded == round(rounded, 2) else f"{rounded:,.{digits}g}"
