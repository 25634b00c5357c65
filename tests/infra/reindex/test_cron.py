"""Cron expressions have the semantics of cron in the schedule's time zone; errors name the invalid field."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from infra.reindex import cron
from searchforge.config import ScheduleConfig
from searchforge.errors import UsageError

SATURDAY = datetime(2026, 11, 28, 12, 0, tzinfo=timezone.utc)


def _due(expression: str, count: int = 3, start: datetime = SATURDAY, zone: str = "UTC") -> list[str]:
    settings, found = ScheduleConfig(cron=expression, timezone=zone), []
    for _ in range(count):
        start = cron.next_due(settings, start)
        found.append(start.astimezone(timezone.utc).strftime("%m-%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("0 3 * * *", ["11-29 03:00", "11-30 03:00", "12-01 03:00"]),
        ("0 3 * * 0", ["11-29 03:00", "12-06 03:00", "12-13 03:00"]),
        ("0 3 * * 7", ["11-29 03:00", "12-06 03:00", "12-13 03:00"]),
        ("0 3 * * SUN", ["11-29 03:00", "12-06 03:00", "12-13 03:00"]),
        ("0 3 * * 1-5", ["11-30 03:00", "12-01 03:00", "12-02 03:00"]),
        ("0 3 * * mon,fri", ["11-30 03:00", "12-04 03:00", "12-07 03:00"]),
        ("0 3 * * 5-7", ["11-29 03:00", "12-04 03:00", "12-05 03:00"]),
        ("0 3 * * mon-fri/2", ["11-30 03:00", "12-02 03:00", "12-04 03:00"]),
        ("*/20 12 * * *", ["11-28 12:20", "11-28 12:40", "11-29 12:00"]),
        ("5/25 12 * * *", ["11-28 12:05", "11-28 12:30", "11-28 12:55"]),
        ("0 0 1 jan-mar/2 *", ["01-01 00:00", "03-01 00:00", "01-01 00:00"]),
        ("0 3 13 * 5", ["12-04 03:00", "12-11 03:00", "12-13 03:00"]),  # the 13th, and Fridays
        ("0 3 */2 * 1", ["12-07 03:00", "12-21 03:00", "01-11 03:00"]),  # Mondays that are odd days
        ("0 0 29 2 *", ["02-29 00:00", "02-29 00:00", "02-29 00:00"]),
    ],
)
def test_due_times_match_cron(expression: str, due: list[str]) -> None:
    assert _due(expression) == due


SPRING = datetime(2026, 3, 28, 12, tzinfo=timezone.utc)
AUTUMN = datetime(2026, 10, 24, 12, tzinfo=timezone.utc)
"""The days before the clocks of Berlin are set forward from 2:00 to 3:00, and back from 3:00 to 2:00."""


@pytest.mark.parametrize(
    ("expression", "start", "due"),
    [
        ("0 0 * * *", SPRING, ["03-28 23:00", "03-29 22:00", "03-30 22:00"]),
        ("0 0 * * mon", SPRING, ["03-29 22:00", "04-05 22:00", "04-12 22:00"]),
        ("0 0 1 * *", SPRING, ["03-31 22:00", "04-30 22:00", "05-31 22:00"]),
        ("30 2 * * *", SPRING, ["03-29 01:00", "03-30 00:30", "03-31 00:30"]),  # at 3:00, right after the skipped time
        ("15,45 2 * * *", SPRING, ["03-29 01:00", "03-30 00:15", "03-30 00:45"]),
        ("*/30 1-3 * * *", SPRING, ["03-29 00:00", "03-29 00:30", "03-29 01:00"]),
        ("30 2 * * *", AUTUMN, ["10-25 00:30", "10-26 01:30", "10-27 01:30"]),  # the first of two
        ("0 * 25 10 *", AUTUMN.replace(hour=23), ["10-25 00:00", "10-25 01:00", "10-25 02:00"]),
        ("*/30 2 * * *", AUTUMN, ["10-25 00:00", "10-25 00:30", "10-25 01:00"]),
    ],
)
def test_due_times_when_the_clock_is_changed(expression: str, start: datetime, due: list[str]) -> None:
    assert _due(expression, start=start, zone="Europe/Berlin") == due


@pytest.mark.parametrize(("hours", "due"), [(0.0, True), (0.9, True), (1.0, False), (5.0, False)])
def test_the_last_due_time_is_limited_by_the_misfire_grace(hours: float, due: bool) -> None:
    three = datetime(2026, 11, 28, 3, 0, tzinfo=timezone.utc)
    settings = ScheduleConfig(cron="0 3 * * *", misfire_seconds=3600)
    assert cron.last_due(settings, three + timedelta(hours=hours)) == (three if due else None)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("60 3 * * *", "'60' is not a valid minute; expected 0 to 59"),
        ("0 24 * * *", "'24' is not a valid hour; expected 0 to 23"),
        ("0 3 0 * *", "'0' is not a valid day of the month; expected 1 to 31"),
        ("0 3 * 13 *", "'13' is not a valid month; expected 1 to 12 or jan to dec"),
        ("0 3 * * 8", "'8' is not a valid day of the week; expected 0 to 7 or sun to sat"),
        ("0 3 * * foo", "'foo' is not a valid day of the week"),
        ("0 9-3 * * *", "'9-3' is not a valid hour"),
        ("*/0 3 * * *", "'*/0' is not a valid minute"),
        ("-1 3 * * *", "'-1' is not a valid minute"),
        ("1, 3 * * *", "'' is not a valid minute"),
        ("² 3 * * *", "'²' is not a valid minute"),
        ("0 3 * *", "has 4 fields, expected five: minute, hour"),
        ("", "has 0 fields"),
        ("@daily", "has 1 fields"),
        ("0 0 31 2 *", "is never due"),
    ],
)
def test_an_invalid_expression_is_refused_with_its_field(expression: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        cron.CronTrigger(ScheduleConfig(cron=expression))
    assert "schedule.cron" in str(raised.value) and message in str(raised.value)


def test_a_missing_expression_is_refused() -> None:
    with pytest.raises(UsageError, match=r"schedule.cron is not set"):
        cron.CronTrigger(ScheduleConfig())


@pytest.mark.parametrize("zone", ["Mars/Base", "../etc/passwd", "", "/etc/localtime", "Europe"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(UsageError, match=r"schedule.timezone .* is unknown"):
        cron.CronTrigger(ScheduleConfig(cron="0 3 * * *", timezone=zone))
