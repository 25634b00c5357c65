"""Cron expressions: translates them into APScheduler triggers and computes due times.

They have the semantics of cron: Sunday is 0 or 7, and if both the day of the month and the day of the week are
restricted, a date that matches either is due. APScheduler counts weekdays from Monday and requires both to match.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from searchforge.config import ScheduleConfig
from searchforge.errors import UsageError

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905
_WEEKDAYS = "sun mon tue wed thu fri sat".split()  # noqa: SIM905


@dataclass(frozen=True)
class _Field:
    """A field of a cron expression, its range, and names that may stand for numbers."""

    name: str
    minimum: int
    maximum: int
    names: dict[str, int]


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of the month", 1, 31, {}),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("day of the week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)


def trigger(settings: ScheduleConfig) -> BaseTrigger:
    """Returns an APScheduler trigger for the configured expression.

    Raises:
      UsageError: The expression or the time zone is missing or invalid, or no date ever matches.
    """
    from apscheduler.triggers.combining import OrTrigger
    from apscheduler.triggers.cron import CronTrigger

    if settings.cron is None:
        raise UsageError('schedule.cron is not set; expected five fields, such as --cron "0 3 * * *" (daily at 3:00)')
    try:
        zone = ZoneInfo(settings.timezone)
    except (OSError, ValueError, LookupError):
        raise UsageError(
            f"schedule.timezone {settings.timezone!r} is unknown; expected an IANA name, such as Europe/Berlin"
        ) from None
    texts = settings.cron.split()
    if len(texts) != len(_FIELDS):
        expected = ", ".join(field.name for field in _FIELDS)
        raise UsageError(f"schedule.cron {settings.cron!r} has {len(texts)} fields, expected five: {expected}")
    numbers = [_numbers(field, text, settings.cron) for field, text in zip(_FIELDS, texts, strict=True)]
    minute, hour, day, month = (",".join(map(str, sorted(found))) for found in numbers[:4])
    weekday = ",".join(_WEEKDAYS[number] for number in sorted({number % 7 for number in numbers[4]}))

    def times(**days: str) -> BaseTrigger:
        return CronTrigger(minute=minute, hour=hour, month=month, timezone=zone, **days)

    if texts[2].startswith("*") or texts[4].startswith("*"):
        found = times(day=day, day_of_week=weekday)
    else:
        found = OrTrigger([times(day=day), times(day_of_week=weekday)])
    if found.get_next_fire_time(None, datetime.now(zone)) is None:
        raise UsageError(f"schedule.cron {settings.cron!r} is never due: no month has such a day")
    return found


def next_due(settings: ScheduleConfig, now: datetime) -> datetime:
    """Returns the first due time after `now`."""
    return next(_times(trigger(settings), now))


def last_due(settings: ScheduleConfig, now: datetime) -> datetime | None:
    """Returns the last due time up to `now`, or None if it is more than `misfire_seconds` ago."""
    last = None
    for time in _times(trigger(settings), now - timedelta(seconds=settings.misfire_seconds)):
        if time > now:
            break
        last = time
    return last


def _times(trigger: Any, after: datetime) -> Iterator[datetime]:
    time = after
    while (time := trigger.get_next_fire_time(time, time)) is not None:
        yield time


def _numbers(field: _Field, text: str, expression: str) -> set[int]:
    """Returns the numbers that a field matches: a list of `*`, `a` or `a-b`, each optionally followed by `/step`."""
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            if span == "*":
                start, end = field.minimum, field.maximum
            else:
                start = _number(field, first)
                end = _number(field, last) if dash else field.maximum if slash else start
            stride = int(step) if slash else 1
            if not (field.minimum <= start <= end <= field.maximum and stride > 0):
                raise ValueError
        except ValueError:
            names = f" or {next(iter(field.names))} to {list(field.names)[-1]}" if field.names else ""
            raise UsageError(
                f"schedule.cron {expression!r}: {part!r} is not a valid {field.name}; expected {field.minimum} to "
                f"{field.maximum}{names}, a range such as {field.minimum}-{field.minimum + 4}, or *, optionally with "
                "a step such as */2"
            ) from None
        found.update(range(start, end + 1, stride))
    return found


def _number(field: _Field, text: str) -> int:
    if text.lower() in field.names:
        return field.names[text.lower()]
    if not (text.isascii() and text.isdigit()):
        raise ValueError
    return int(text)
