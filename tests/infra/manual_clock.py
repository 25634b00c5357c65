"""A clock that tests control: sleeping advances it without waiting."""

from __future__ import annotations

from collections.abc import Callable


class ManualClock:
    """A searchforge.clock.Clock for tests.

    Args:
      meanwhile: Called during every sleep, after the time has advanced.

    Attributes:
      slept: Duration of each sleep in seconds.
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
