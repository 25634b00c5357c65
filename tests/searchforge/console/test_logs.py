"""Structured logs: every message is one JSON object on one line, with the run and stage it belongs to."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from searchforge import log_context, progress
from searchforge.console import logs
from searchforge.errors import JobError

logger = logging.getLogger("searchforge.tests")


@pytest.fixture(autouse=True)
def _json(console_logs: None) -> Iterator[None]:
    logs.configure("json")
    yield
    logs.configure("text")


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_the_fields_that_cloud_logging_reads(capsys: pytest.CaptureFixture[str]) -> None:
    logger.info("\n  two photos\n  are damaged: «é»")
    (line,) = _lines(capsys)
    assert line.keys() == {"time", "severity", "message"}
    assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    assert (line["severity"], line["message"]) == ("INFO", "two photos\n  are damaged: «é»")


def test_progress_has_numeric_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("embed", 4, interval=0, clock=iter([0, 2, 4, 4]).__next__) as advance:
        advance(1)
        advance(3)
    assert [(line["message"], line["done"], line["total"]) for line in _lines(capsys)] == [
        ("embed: 1/4", 1, 4),
        ("embed: 4/4 in 4.0 s, 1.0 items/s", 4, 4),
    ]


def test_bound_fields_are_in_the_lines_of_every_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with log_context.bind(run="r1"):
        with log_context.bind(stage="embed"):
            thread = threading.Thread(target=logger.info, args=["from a thread"])
            thread.start()
            thread.join()
        logger.info("between stages")
    logger.info("after the run")
    assert [(line.get("run"), line.get("stage")) for line in _lines(capsys)] == [
        ("r1", "embed"),
        ("r1", None),
        (None, None),
    ]


def test_an_error_carries_the_fields_of_the_run_and_stage_it_left(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError) as raised, log_context.bind(run="r1"), log_context.bind(stage="index"):
        raise JobError("no space left")
    logs.print_error(raised.value)
    (line,) = _lines(capsys)
    assert (line["severity"], line["message"], line["run"], line["stage"]) == ("ERROR", "no space left", "r1", "index")


def test_library_errors_are_logged_without_a_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("some.library")
    logger.warning("not shown")
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("it went %s", "wrong")
    lines = _lines(capsys)
    assert [(line["severity"], line["message"], line["logger"]) for line in lines] == [
        ("ERROR", "it went wrong", "some.library")
    ]


@pytest.mark.parametrize("arguments", [["--log-format", "json"], []])
def test_the_format_is_an_option_or_an_environment_variable(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra", "embed", "--set", "embed.nonsense=1", *arguments],
        env={} if arguments else {"SEARCHFORGE_LOG": "json"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["severity"] == "ERROR" and "embed.nonsense: unknown key" in json.loads(line)["message"]
