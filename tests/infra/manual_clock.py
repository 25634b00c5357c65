"""A clock that a test sets: whoever sleeps by it does not wait, and what should happen meanwhile is done at once."""

from __future__ import annotations

from collections.abc import Callable


class ManualClock:
    """A searchforge.clock.Clock.

    Args:
      meanwhile: called in every sleep, after the time has passed.

    Attributes:
      slept: seconds of each sleep.
    """

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.slept: list[float] = []
        self._now, self._meanwhile = 1000.0, meanwhile

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float, /) -> None:
        self._now += seconds
        self.slept.append(seconds)
        self._meanwhile()
