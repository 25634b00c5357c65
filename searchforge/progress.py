"""Progress of long-running work: logged at intervals, or drawn as a bar where a command line has asked for bars."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias, TypeVar

Item = TypeVar("Item")
Advance: TypeAlias = Callable[[int], None]
"""Adds to the number of finished items."""
Bars: TypeAlias = Callable[[str, int, str], AbstractContextManager[Advance]]
"""Draws a bar, given a label, the total and the name of one item."""

LOG_INTERVAL = 10.0
"""Seconds between two log records of one task."""

logger = logging.getLogger(__name__)
_bars: Bars | None = None


def use_bars(bars: Bars | None) -> None:
    """Draws progress with `bars` from now on; with None, logs it."""
    global _bars
    _bars = bars


def counted(label: str, items: Iterable[Item]) -> Iterator[Item]:
    """Passes items through and logs their count at intervals, for work of unknown length."""
    logged = time.monotonic()
    for count, item in enumerate(items, 1):
        if time.monotonic() - logged >= LOG_INTERVAL:
            logged = time.monotonic()
            logger.info(f"  {label}: {count:,}")
        yield item


@contextmanager
def track(
    label: str,
    total: int,
    unit: str = "item",
    numbered: bool = False,
    interval: float = LOG_INTERVAL,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Reports how much of `total` is done; yields the function that adds to it.

    Rate and time left are measured from the end of the first step, which is often slow: caches are cold and graphs are
    being compiled.

    Args:
      unit: Name of one item in rates, for example "epoch" in "2.3 s/epoch".
      numbered: Whether the unit is also shown before the count, as in "epoch 3/30".
      interval: Seconds between two log records.
      clock: Returns the time in seconds.
    """
    task = f"{label}: {unit}" if numbered else f"{label}:"
    if _bars is not None:
        with _bars(task.removesuffix(":"), total, unit) as advance_bar:
            yield advance_bar
        return
    start = logged = clock()
    done = 0
    steps: list[tuple[float, int]] = []  # time and count after the first step and after the latest one

    def log(suffix: str) -> None:
        logger.info(f"  {task} {done}/{total}{suffix}", extra={"fields": {"done": done, "total": total}})

    def advance(count: int) -> None:
        nonlocal done, logged
        now = clock()
        if count:
            done += count
            steps[1:] = [(now, done)]
        if now - logged >= interval and 0 < done < total:
            logged = now
            (warm, first), (latest, _) = steps[0], steps[-1]
            rate = (done - first) / (latest - warm) if latest > warm else 0.0
            log(f", {rate_text(rate, unit)}, about {(total - done) / rate:.0f} s left" if rate else "")

    yield advance
    elapsed = clock() - start
    log(f" in {elapsed:.1f} s" + (f", {rate_text(done / elapsed, unit)}" if done and elapsed else ""))


def rate_text(rate: float, unit: str = "item") -> str:
    """Formats a rate in items per second: "31 MB/s", "2.5 items/s", or "2.3 s/epoch" below one per second."""
    if rate < 1:
        return f"{1 / rate:.1f} s/{unit}"
    units = unit if unit.isupper() else f"{unit}s"
    return f"{rate:.0f} {units}/s" if rate >= 10 else f"{rate:.1f} {units}/s"
