"""Cron expressions: their due times in a time zone, and an APScheduler trigger for them.

They have the semantics of cron(8): Sunday is 0 or 7, and if both the day of the month and the day of the week are
restricted, a date that matches either is due. When the clock is changed, an expression of fixed times, in which neither
minute nor hour begins with `*`, is due once for each time of the day: right after the change if the clock skips the
time, and the first time if the clock shows it twice. Any other expression is due whenever the clock shows a time that
matches, so that it follows the time that passes. (APScheduler's own trigger skips days around a change.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from itertools import product
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger

from searchforge.config import ScheduleConfig
from searchforge.errors import UsageError

_LONGEST_PAUSE = timedelta(days=50 * 366)
"""An expression that is not due for so long is never due; 29 February on a given weekday takes up to 40 years."""

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


class CronTrigger(BaseTrigger):
    """The due times of an expression, as an APScheduler trigger.

    Args:
      settings: Expression and time zone.

    Raises:
      UsageError: The expression or the time zone is missing or invalid, or no date ever matches.
    """

    def __init__(self, settings: ScheduleConfig) -> None:
        if settings.cron is None:
            raise UsageError(
                'schedule.cron is not set; expected five fields, such as --cron "0 3 * * *" (daily at 3:00)'
            )
        try:
            self._zone = ZoneInfo(settings.timezone)
        except (OSError, ValueError, LookupError):
            raise UsageError(
                f"schedule.timezone {settings.timezone!r} is unknown; expected an IANA name, such as Europe/Berlin"
            ) from None
        texts = settings.cron.split()
        if len(texts) != len(_FIELDS):
            expected = ", ".join(field.name for field in _FIELDS)
            raise UsageError(f"schedule.cron {settings.cron!r} has {len(texts)} fields, expected five: {expected}")
        numbers = [_numbers(field, text, settings.cron) for field, text in zip(_FIELDS, texts, strict=True)]
        minutes, hours, self._days, self._months, weekdays = numbers
        self._times = [time(hour, minute) for hour, minute in product(sorted(hours), sorted(minutes))]
        self._weekdays = {(number - 1) % 7 for number in weekdays}  # Monday is 0
        self._both_days = texts[2].startswith("*") or texts[4].startswith("*")
        self._fixed = not (texts[0].startswith("*") or texts[1].startswith("*"))
        if next(self.times(datetime.now(timezone.utc)), None) is None:
            raise UsageError(f"schedule.cron {settings.cron!r} is never due: no month has such a day")

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        """Returns the first due time after the previous one, or after now if there was none."""
        return next(self.times(previous or now), None)

    def times(self, after: datetime) -> Iterator[datetime]:
        """Yields the due times after a time, in order and in the schedule's time zone."""
        day = after.astimezone(self._zone).date() - timedelta(days=1)
        last = day + _LONGEST_PAUSE
        pending: set[datetime] = set()
        while day < last:
            pending |= self._due_on(day)
            # A clock that is set back around midnight mixes the times of two days, which are then sorted together.
            start = _utc(datetime.combine(day, time()), self._zone, 0)
            ready = sorted(found for found in pending if found <= start)
            pending.difference_update(ready)
            for found in ready:
                if found > after:
                    last = day + _LONGEST_PAUSE
                    yield found.astimezone(self._zone)
            day += timedelta(days=1)

    def _due_on(self, day: date) -> set[datetime]:
        """Returns the due times (UTC) for which the clock shows this date."""
        matches = day.day in self._days, day.weekday() in self._weekdays
        if day.month not in self._months or not (all(matches) if self._both_days else any(matches)):
            return set()
        found: set[datetime] = set()
        for shown in (datetime.combine(day, each) for each in self._times):
            times = _shown(shown, self._zone)
            if self._fixed:
                found.add(times[0] if times else _skipped(shown, self._zone))
            else:
                found.update(times)
        return found


def next_due(settings: ScheduleConfig, now: datetime) -> datetime:
    """Returns the first due time after `now`."""
    return next(CronTrigger(settings).times(now))


def last_due(settings: ScheduleConfig, now: datetime) -> datetime | None:
    """Returns the last due time up to `now`, or None if it is more than `misfire_seconds` ago."""
    last = None
    for due in CronTrigger(settings).times(now - timedelta(seconds=settings.misfire_seconds)):
        if due > now:
            break
        last = due
    return last


def _shown(local: datetime, zone: ZoneInfo) -> list[datetime]:
    """Returns the times (UTC) at which the zone's clock shows a local time: one, or around a change none or two."""
    times = {_utc(local, zone, fold) for fold in (0, 1)}
    return sorted(found for found in times if found.astimezone(zone).replace(tzinfo=None, fold=0) == local)


def _skipped(local: datetime, zone: ZoneInfo) -> datetime:
    """Returns the time (UTC) of the change by which the zone's clock skips a local time, to the second."""
    before, after = _utc(local, zone, 1), _utc(local, zone, 0)
    offset = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after


def _utc(local: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return local.replace(tzinfo=zone, fold=fold).astimezone(timezone.utc)


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
