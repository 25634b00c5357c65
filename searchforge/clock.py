"""The clock: what tells the time and waits. It is a parameter, so that tests of waiting need not wait."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A clock; the standard module `time` is one, and the default wherever a clock is asked for."""

    def monotonic(self) -> float:
        """Returns seconds from some fixed moment on; they never go back."""

    def sleep(self, seconds: float, /) -> None:
        """Waits."""
