"""A request to stop ends a Beam job as it was raised, without a stack trace in the log."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from searchforge.beam_runner import interruptible, runner_option


class Stop(BaseException):
    """A request to stop with an argument, which Beam would change."""


def _interrupt(_: int) -> None:
    signal.raise_signal(signal.SIGINT)


def _stop(_: int) -> None:
    raise Stop("SIGTERM")


def _fail(_: int) -> None:
    raise ValueError("no number")


def _run(function: Callable[[int], None]) -> None:
    with interruptible(), beam.Pipeline(options=PipelineOptions([runner_option("DirectRunner")])) as pipeline:
        _ = pipeline | beam.Create([1]) | beam.Map(function)


@pytest.fixture
def python_sigint() -> Iterator[None]:
    """Python's own handler: a process that was started in the background may ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_sigint")
@pytest.mark.parametrize(
    ("function", "request_type", "text"), [(_interrupt, KeyboardInterrupt, ""), (_stop, Stop, "SIGTERM")]
)
def test_a_request_to_stop_is_raised_unchanged(
    function: Callable[[int], None], request_type: type[BaseException], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(request_type) as raised:
        _run(function)
    assert str(raised.value) == text
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_failure_is_logged_and_raised(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="no number"):
        _run(_fail)
    assert "no number" in caplog.text
