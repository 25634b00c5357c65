"""Interface of clocks, which are passed as parameters so that tests need not wait."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A monotonic clock. The standard module `time` implements it and is the default everywhere."""

    def monotonic(self) -> float:
        """Returns seconds since an arbitrary fixed time; never decreases."""

    def sleep(self, seconds: float, /) -> None:
        """Suspends the calling thread."""
