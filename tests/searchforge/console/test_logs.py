"""Structured logs: whatever a command tells is one JSON object a line, with the run that it belongs to."""

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

from searchforge.console import logs, progress
from searchforge.errors import JobError


@pytest.fixture(autouse=True)
def _json() -> Iterator[None]:
    logs.use("json")
    yield
    logs.use("text")


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_what_a_collector_reads(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("\n  two photos\n  are damaged: «é»")
    (line,) = _lines(capsys)
    assert line.keys() == {"time", "severity", "message"}
    assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    assert (line["severity"], line["message"]) == ("INFO", "two photos\n  are damaged: «é»")


def test_progress_is_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("embed", 4, interval=0) as advance:
        advance(1)
        advance(3)
    assert [(line["message"], line["done"], line["total"]) for line in _lines(capsys)] == [
        ("embed: 1/4", 1, 4),
        ("embed: 4/4", 4, 4),
    ]


def test_lines_carry_what_is_bound_in_every_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.bind(run="r1"):
        with logs.bind(stage="embed"):
            thread = threading.Thread(target=progress.say, args=["from a thread"])
            thread.start()
            thread.join()
        progress.say("between stages")
    progress.say("after the run")
    assert [(line.get("run"), line.get("stage")) for line in _lines(capsys)] == [
        ("r1", "embed"),
        ("r1", None),
        (None, None),
    ]


def test_an_error_names_the_run_and_stage_that_it_left(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError) as raised, logs.bind(run="r1"), logs.bind(stage="index"):
        raise JobError("no space left")
    logs.show(raised.value)
    (line,) = _lines(capsys)
    assert (line["severity"], line["message"], line["run"], line["stage"]) == ("ERROR", "no space left", "r1", "index")


def test_what_libraries_log_is_a_line_without_a_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("some.library")
    logger.addHandler(logs.LibraryHandler())
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("it went %s", "wrong")
    lines = _lines(capsys)
    assert [(line["severity"], line["message"], line["logger"]) for line in lines] == [
        ("ERROR", "it went wrong", "some.library")
    ]


@pytest.mark.parametrize("arguments", [["--log-format", "json"], []])
def test_commands_take_it_as_an_option_or_from_the_environment(arguments: list[str]) -> None:
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
