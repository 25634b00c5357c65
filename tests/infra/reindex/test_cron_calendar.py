"""Due times agree, in every time zone, with a calendar that lists what the zone's clock shows in each minute."""

from __future__ import annotations

import itertools
import zoneinfo
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pytest

from infra.reindex import cron
from searchforge.config import ScheduleConfig
from searchforge.hashing import sha256_bytes

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
ZONES = (
    "Europe/Berlin",
    "Australia/Lord_Howe",  # half an hour
    "Antarctica/Troll",  # two hours
    "Africa/Casablanca",  # around Ramadan
    "America/Santiago",  # at midnight
)

ALL = (range(60), range(24), range(1, 32), range(1, 13), range(7))


@dataclass(frozen=True)
class Expression:
    """An expression and what it means.

    Attributes:
      text: Five fields.
      fields: Minutes, hours, days, months and weekdays (Sunday is 0).
      either: Whether the day of the month or that of the week is enough.
      dense: Whether it is due many times a day; it is then compared in the days around each change of the clock.
    """

    text: str
    fields: tuple[set[int], ...]
    either: bool = False
    dense: bool = False

    @property
    def fixed(self) -> bool:
        return "*" not in "".join(self.text.split()[:2])


def _expression(text: str, either: bool = False, dense: bool = False, **given: set[int]) -> Expression:
    names = ("minutes", "hours", "days", "months", "weekdays")
    fields = tuple(given.get(name, set(every)) for name, every in zip(names, ALL, strict=True))
    return Expression(text, fields, either, dense)


EXPRESSIONS = (
    _expression("0 0 * * *", minutes={0}, hours={0}),
    _expression("30 0 * * *", minutes={30}, hours={0}),
    _expression("59 23 * * *", minutes={59}, hours={23}),
    _expression("0 1 * * *", minutes={0}, hours={1}),
    _expression("30 1 * * *", minutes={30}, hours={1}),
    _expression("0 2 * * *", minutes={0}, hours={2}),
    _expression("15,45 2 * * *", minutes={15, 45}, hours={2}),
    _expression("0 3 * * *", minutes={0}, hours={3}),
    _expression("0 2,3 * * *", minutes={0}, hours={2, 3}),
    _expression("0 0,12 * * *", minutes={0}, hours={0, 12}),
    _expression("10 1-4 * * *", minutes={10}, hours={1, 2, 3, 4}),
    _expression("0 0-23/6 * * *", minutes={0}, hours={0, 6, 12, 18}),
    _expression("0 0 * * mon", minutes={0}, hours={0}, weekdays={1}),
    _expression("30 2 * * sun", minutes={30}, hours={2}, weekdays={0}),
    _expression("30 2 * * 7", minutes={30}, hours={2}, weekdays={0}),
    _expression("0 3 * * 1-5", minutes={0}, hours={3}, weekdays={1, 2, 3, 4, 5}),
    _expression("0 0 1 * *", minutes={0}, hours={0}, days={1}),
    _expression("30 2 29 3 *", minutes={30}, hours={2}, days={29}, months={3}),
    _expression("0 0 31 * *", minutes={0}, hours={0}, days={31}),
    _expression("0 0 29 2 *", minutes={0}, hours={0}, days={29}, months={2}),
    _expression("0 3 13 * 5", either=True, minutes={0}, hours={3}, days={13}, weekdays={5}),
    _expression("0 3 */2 * 1", minutes={0}, hours={3}, days=set(range(1, 32, 2)), weekdays={1}),
    _expression("0 4 1 jan,jul *", minutes={0}, hours={4}, days={1}, months={1, 7}),
    _expression("*/30 2 * * *", minutes={0, 30}, hours={2}),
    _expression("*/20 0 * * *", minutes={0, 20, 40}, hours={0}),
    _expression("0 * * * sun", dense=True, minutes={0}, weekdays={0}),
    _expression("0 * * * *", dense=True, minutes={0}),
    _expression("0 */2 * * *", dense=True, minutes={0}, hours=set(range(0, 24, 2))),
    _expression("*/30 * * * *", dense=True, minutes={0, 30}),
    _expression("*/7 1-3 * * *", dense=True, minutes=set(range(0, 60, 7)), hours={1, 2, 3}),
    _expression("* * * * *", dense=True),
)


class Clock:
    """What a zone's clock shows in each UTC minute from `START`.

    Attributes:
      shown: Minutes since 1970, int64 [minutes].
      days, minutes: The day since 1970 and the minute of the day that are shown, int64 [minutes].
      reached: The latest time that was shown so far, int64 [minutes].
    """

    def __init__(self, zone: ZoneInfo, days: int) -> None:
        hours = [START + timedelta(hours=hour) for hour in range(24 * days + 1)]
        offsets = [_offset(zone, hour) for hour in hours]
        offset = np.repeat(np.array(offsets[:-1]), 60)
        for index, (before, after) in enumerate(itertools.pairwise(offsets)):
            if before != after:
                inside = [_offset(zone, hours[index] + timedelta(minutes=minute)) for minute in range(60)]
                offset[60 * index : 60 * index + 60] = inside
        self.shown = int(START.timestamp()) // 60 + np.arange(len(offset)) + offset
        self.days, self.minutes = np.divmod(self.shown, 1440)
        self.reached = np.maximum.accumulate(self.shown)

    def changes(self) -> list[int]:
        """Returns the minutes before which the clock is changed, and the first minute."""
        return [0, *map(int, np.flatnonzero(np.diff(self.shown) != 1))]


def _offset(zone: ZoneInfo, time: datetime) -> int:
    offset = time.astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds()) // 60


def _calendar(expression: Expression, clock: Clock) -> npt.NDArray[np.int64]:
    """Returns the UTC minutes, counted from `START`, in which the expression is due."""
    minutes, hours, month_days, months, weekdays = expression.fields
    daily = sorted(60 * hour + minute for hour in hours for minute in minutes)
    first, last = int(clock.days[0]), int(clock.reached[-1] // 1440)
    either = any if expression.either else all
    due = np.zeros(last - first + 2, bool)  # the days from the one before the first
    for day in range(first, last + 1):
        date = datetime(1970, 1, 1) + timedelta(days=day)
        matches = date.day in month_days, date.isoweekday() % 7 in weekdays
        due[day - first + 1] = date.month in months and either(matches)
    if not expression.fixed:
        return np.flatnonzero(due[clock.days - first + 1] & np.isin(clock.minutes, daily))
    wanted = (1440 * (np.flatnonzero(due) + first - 1)[:, np.newaxis] + daily).ravel()
    found = np.unique(np.searchsorted(clock.reached, wanted))
    return found[(found > 0) & (found < len(clock.reached))]


def _compare(zone: str, days: int, expressions: tuple[Expression, ...], clock: Clock) -> int:
    """Compares the due times in a zone, in the first two years and around each later change; returns their number."""
    count, end = 0, 1440 * (days - 2)
    two_years = min(end, 1440 * 731)
    for expression in expressions:
        calendar = _calendar(expression, clock)
        trigger = cron.CronTrigger(ScheduleConfig(cron=expression.text, timezone=zone))
        around = 1440 * (1 if expression.dense else 32)
        spans = [(max(0, change - around), min(end, change + around)) for change in clock.changes()]
        if not expression.dense:
            spans = [(0, two_years), *(span for span in spans if span[1] > two_years)]
        for first, last in spans:
            wanted = calendar[(calendar > first) & (calendar <= last)]
            minutes = ((due - START) // timedelta(minutes=1) for due in trigger.times(START + timedelta(minutes=first)))
            found = list(itertools.takewhile(last.__ge__, minutes))
            np.testing.assert_array_equal(found, wanted, err_msg=f"{expression.text} in {zone}")
            count += len(found)
    return count


@pytest.mark.parametrize("zone", ZONES)
def test_due_times_agree_with_a_calendar_for_a_year(zone: str) -> None:
    assert _compare(zone, 366, EXPRESSIONS, Clock(ZoneInfo(zone), 366)) > 1000


@pytest.mark.proof
def test_due_times_agree_with_a_calendar_in_all_zones_for_ten_years() -> None:
    seen = set()
    for zone in sorted(zoneinfo.available_timezones()):
        clock = Clock(ZoneInfo(zone), 3653)
        if (shown := sha256_bytes(clock.shown.tobytes())) not in seen:  # many names stand for the same clock
            seen.add(shown)
            assert _compare(zone, 3653, EXPRESSIONS, clock) > 10_000
    assert len(seen) > 50
