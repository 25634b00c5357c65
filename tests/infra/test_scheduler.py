"""`searchforge schedule`: due and missed runs start, overlaps are left out, and it ends with what it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
import pytest
from click.testing import CliRunner

from searchforge.cli import config_options, repeated_options, reports_errors
from searchforge.config import Config, load_config
from searchforge.workspace import Workspace
from tests.infra.journal_world import write_run

EVERY_MINUTE = "* * * * *"


class _Schedule:
    """A schedule in a process of its own; `told` waits for a line with some words on its standard error."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr
        self._lines: IO[str] = process.stderr

    def told(self, words: str) -> str:
        seen = []
        for line in self._lines:
            if words in line:
                return line
            seen.append(line)
        raise AssertionError(f"{words!r} was not told, but {seen}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def _schedule(workspace: Path, child: str, setting: str = "", cron: str = EVERY_MINUTE) -> Iterator[_Schedule]:
    """Runs a schedule whose re-indexing is the Python code `child`; `setting` is code that comes first."""
    command = [sys.executable, "-c", child]
    overrides = {"workspace": str(workspace), "schedule.cron": cron, "schedule.metrics_port": 0}
    code = f"""
from infra import cron, scheduler
from searchforge.config import load_config
{setting}
scheduler.schedule(load_config(None, {overrides!r}), {command!r})
"""
    with _started("-c", code) as schedule:
        yield schedule


@contextmanager
def _started(*arguments: str) -> Iterator[_Schedule]:
    """Runs Python with these arguments."""
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        yield _Schedule(process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def behind(tmp_path: Path) -> Path:
    """A workspace whose last run was before the latest full minute."""
    write_run(Workspace(str(tmp_path / "workspace")), "unchanged", hours=2)
    return tmp_path / "workspace"


EVERY_SECOND = """
from apscheduler.triggers.interval import IntervalTrigger
cron.trigger = lambda settings: IntervalTrigger(seconds=1)
"""


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_missed_run_starts_at_once_and_ends_with_the_schedule(behind: Path, tmp_path: Path, number: int) -> None:
    child = f"""
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path({str(tmp_path / "ended")!r}).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("the child runs", file=sys.stderr, flush=True)
time.sleep(600)
"""
    with _schedule(behind, child) as schedule:
        schedule.told("which was missed: it starts now")
        schedule.told("the child runs")
        assert schedule.end(number) == 0
        schedule.told("the schedule has ended")
    assert (tmp_path / "ended").exists()


def test_nothing_starts_ahead_of_time(tmp_path: Path) -> None:
    with _schedule(tmp_path / "workspace", "print()", cron="0 0 29 2 *") as schedule:
        assert "02-29 00:00 UTC" in schedule.told("the first run is that of")
        assert schedule.end() == 0


def test_a_run_that_does_not_end_is_killed_with_its_children(behind: Path, tmp_path: Path) -> None:
    child = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen(["sleep", "600"])
print("child", other.pid, file=sys.stderr, flush=True)
time.sleep(600)
"""
    with _schedule(behind, child, "scheduler.END_SECONDS = 0.5") as schedule:
        other = Path("/proc") / schedule.told("child ").split()[1] / "stat"
        assert schedule.end() == 0
    while other.exists() and other.read_text().split()[2] != "Z":  # it ends when the kernel gets to it
        os.sched_yield()


@pytest.mark.parametrize(
    ("child", "how"),
    [
        ("raise SystemExit(1)", "ended with exit code 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
    ],
)
def test_a_run_that_fails_ends_no_schedule(behind: Path, child: str, how: str) -> None:
    with _schedule(behind, child, EVERY_SECOND) as schedule:
        url = schedule.told("metrics: ").split()[-1]
        schedule.told(how)
        schedule.told(how)
        assert _metric(url, "searchforge_schedule_failures_total") >= 2
        assert _metric(url, "searchforge_status_read") == 1
        assert schedule.end() == 0


def test_a_time_that_comes_while_a_run_lasts_is_left_out(behind: Path) -> None:
    with _schedule(behind, "import time; time.sleep(600)", EVERY_SECOND) as schedule:
        url = schedule.told("metrics: ").split()[-1]
        schedule.told("a scheduled run is left out: the one before still runs; the next one is at")
        assert _metric(url, "searchforge_schedule_overlaps_total") >= 1
        assert _metric(url, "searchforge_schedule_failures_total") == 0
        assert schedule.end() == 0


def test_the_command_re_indexes_with_its_own_configuration(tmp_path: Path) -> None:
    write_run(Workspace(str(tmp_path)), "failed", hours=2, failures=5, failed_stage="index", error="disk full")
    options = ["--workspace", str(tmp_path), "--cron", EVERY_MINUTE, "--log-format", "json"]
    with _started("-m", "infra", "schedule", *options, "--set", "reindex.max_failures=4") as schedule:
        refusal = json.loads(schedule.told("runs of reindex failed in a row"))
        assert refusal["severity"] == "ERROR" and refusal["message"].startswith("5 runs")
        assert json.loads(schedule.told("ended with exit code 1"))["severity"] == "INFO"
        assert schedule.end() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "schedule.cron is not set"),
        (["--cron", "0 25 * * *"], "'25' is no hour"),
        (["--cron", "0 3 * * *", "--timezone", "Nowhere"], "schedule.timezone 'Nowhere' is not known"),
        (["--cron", "0 3 * * *", "--metrics-port", "70000"], "schedule.metrics_port"),
    ],
)
def test_a_bad_schedule_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    from infra.cli import main

    result = CliRunner().invoke(main, ["schedule", "--workspace", str(tmp_path), *options])
    assert result.exit_code == 2 and message in result.output


def test_runs_get_the_configuration_of_their_schedule(tmp_path: Path) -> None:
    found: dict[str, Any] = {}

    @click.command()
    @click.option("--captions", "data__captions", multiple=True)
    @click.option("--recall-at-10", "index__recall_at_10", type=float)
    @click.option("--cron", "schedule__cron")
    @click.option("--releases", "__releases")
    @reports_errors
    @config_options
    def outer(config: Config, as_json: bool) -> None:
        found["outer"], found["options"] = config, repeated_options()

    @click.command()
    @reports_errors
    @config_options
    def inner(config: Config, as_json: bool) -> None:
        found["inner"] = config

    file = tmp_path / "searchforge.yaml"
    file.write_text("workspace: here\ntrain: {preset: recipe2022}\nreindex: {keep_runs: 7}\n")
    given = ["--config", str(file), "--set", "train.epochs=5", "--captions", "a, b: 'c'.json", "--captions", "[d]"]
    given += ["--recall-at-10", "0.9", "--cron", "0 3 * * *", "--releases", "gs://bucket/ü", "--log-format", "json"]
    assert CliRunner().invoke(outer, given).exit_code == 0
    assert CliRunner().invoke(inner, found["options"]).exit_code == 0
    assert found["inner"] == found["outer"] != load_config(None)
    assert found["inner"].data.captions == ("a, b: 'c'.json", "[d]")
    assert found["options"][:2] == ["--log-format", "json"]
