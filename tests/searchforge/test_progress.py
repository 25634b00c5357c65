"""Progress of long-running work: counts, rates and the time left."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from searchforge import progress


@pytest.fixture(autouse=True)
def _records(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "searchforge.progress")


def _clock(*times: float) -> Iterator[float]:
    yield from times


def test_rate_and_time_left_leave_the_first_step_out(caplog: pytest.LogCaptureFixture) -> None:
    times = _clock(0, 30, 32.3, 34.6, 96.7)
    with progress.track("training heads", 30, "epoch", numbered=True, interval=2, clock=lambda: next(times)) as advance:
        advance(1)
        advance(1)
        advance(1)
    assert caplog.messages == [
        "  training heads: epoch 1/30",
        "  training heads: epoch 2/30, 2.3 s/epoch, about 64 s left",
        "  training heads: epoch 3/30, 2.3 s/epoch, about 62 s left",
        "  training heads: epoch 3/30 in 96.7 s, 32.2 s/epoch",
    ]


def test_polling_without_progress_does_not_change_the_rate(caplog: pytest.LogCaptureFixture) -> None:
    times = _clock(0, 1, 2, 20, 21)
    with progress.track("embed", 10, interval=10, clock=lambda: next(times)) as advance:
        advance(2)
        advance(4)
        advance(0)
    assert caplog.messages[0] == "  embed: 6/10, 4.0 items/s, about 1 s left"


def test_finished_work_shows_its_duration_and_mean_rate(caplog: pytest.LogCaptureFixture) -> None:
    times = _clock(0, 1, 2)
    with progress.track("embed", 50, clock=lambda: next(times)) as advance:
        advance(50)
    assert caplog.messages == ["  embed: 50/50 in 2.0 s, 25 items/s"]


def test_no_rate_is_shown_without_progress(caplog: pytest.LogCaptureFixture) -> None:
    times = _clock(0, 2)
    with progress.track("embed", 50, clock=lambda: next(times)):
        pass
    assert caplog.messages == ["  embed: 0/50 in 2.0 s"]


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (31.4, "MB", "31 MB/s"),
        (2.54, "file", "2.5 files/s"),
        (0.43, "epoch", "2.3 s/epoch"),
        (0.5, "item", "2.0 s/item"),
    ],
)
def test_a_rate_is_per_second_or_seconds_per_item(rate: float, unit: str, text: str) -> None:
    assert progress.rate_text(rate, unit) == text


def test_work_of_unknown_length_is_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    assert list(progress.counted("listed", "ab")) == ["a", "b"]
    assert caplog.messages == ["  listed: 1", "  listed: 2"]
