"""What a user sees while a stage works: sentences and a progress line on standard error.

On a terminal the line is redrawn; elsewhere a plain line appears now and then, so that logs stay readable.
A log collector gets JSON lines instead, see searchforge.console.logs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from searchforge.console import logs

Item = TypeVar("Item")

PLAIN_INTERVAL = 10.0
"""Seconds between two lines of one task."""


def say(text: str) -> None:
    """Tells the user one thing."""
    if logs.structured():
        logs.write(text)
    else:
        print(text, file=sys.stderr, flush=True)


def counted(label: str, items: Iterable[Item]) -> Iterator[Item]:
    """Passes items on, and shows now and then how many they are; for work whose end is not known."""
    shown = time.monotonic()
    for count, item in enumerate(items, 1):
        if time.monotonic() - shown >= PLAIN_INTERVAL:
            shown = time.monotonic()
            say(f"  {label}: {count:,}")
        yield item


@contextmanager
def track(label: str, total: int, interval: float = PLAIN_INTERVAL) -> Iterator[Callable[[int], None]]:
    """Shows how much of `total` is done; yields the function that adds to it.

    Args:
      interval: seconds between two lines, where there is no terminal.
    """
    if sys.stderr.isatty() and not logs.structured():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class RateColumn(TextColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:.0f}/s" if speed else "")

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(""),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(label, total=total)
            yield lambda count: progress.update(task, advance=count)
        return
    start = shown = time.monotonic()
    done = 0

    def tell(text: str) -> None:
        if logs.structured():
            logs.write(f"{label}: {done}/{total}", done=done, total=total)
        else:
            say(f"  {label}: {done}/{total}{text}")

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        if time.monotonic() - shown >= interval and 0 < done < total:
            shown = time.monotonic()
            rate = done / (shown - start)
            tell(f", {rate:.0f}/s, about {(total - done) / rate:.0f} s left")

    yield advance
    elapsed = time.monotonic() - start
    tell(f" in {elapsed:.1f} s, {done / max(elapsed, 1e-3):.0f}/s")
