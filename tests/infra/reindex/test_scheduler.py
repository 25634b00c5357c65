"""`searchforge schedule` starts due and missed runs, skips overlapping ones, and stops its child process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import IO, Any

import click
import pytest
from apscheduler.triggers.interval import IntervalTrigger
from click.testing import CliRunner

from infra.reindex import lease
from infra.reindex.scheduler import schedule
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config
from searchforge.console.options import config_options, repeated_options, reports_errors
from tests.infra.reindex.sample_journal import write_run

EVERY_MINUTE = "* * * * *"
OFTEN = IntervalTrigger(seconds=0.05)


class _Schedule:
    """A running schedule and its log lines."""

    def __init__(self, lines: IO[str], stop: Callable[[], object]) -> None:
        self._lines, self.stop = lines, stop

    def wait_for(self, words: str) -> str:
        """Waits for a log line that contains `words`, and returns it."""
        others = []
        for line in self._lines:
            if words in line:
                return line
            others.append(line)
        raise AssertionError(f"no line contains {words!r}: {others}")


@contextmanager
def _schedule(workspace: Path, child: str, cron: str = EVERY_MINUTE, **options: Any) -> Iterator[_Schedule]:
    """Runs a schedule in a thread; the shell script `child` stands for re-indexing."""
    config = _config(workspace, cron)
    stop = threading.Event()
    reader, writer = (os.fdopen(end, mode, buffering=1) for end, mode in zip(os.pipe(), ("r", "w"), strict=True))

    def run() -> None:
        with writer, redirect_stderr(writer):
            schedule(config, ["sh", "-c", child], stop=stop, **options)

    with reader, ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)

        def end() -> None:
            stop.set()
            running.result()

        try:
            yield _Schedule(reader, end)
        finally:
            stop.set()


@contextmanager
def _process(*arguments: str) -> Iterator[tuple[_Schedule, Callable[[int], int]]]:
    """Runs Python with these arguments; yields the schedule and a function that stops it by a signal."""
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr

    def end(number: int) -> int:
        process.send_signal(number)
        return process.wait(60)

    try:
        yield _Schedule(process.stderr, process.kill), end
    finally:
        process.kill()
        process.wait()


def _config(workspace: Path, cron: str = EVERY_MINUTE) -> Config:
    return load_config(None, {"workspace": str(workspace), "schedule.cron": cron, "schedule.metrics_port": 0})


@pytest.fixture
def behind(tmp_path: Path) -> Path:
    """A workspace whose last run started before the latest due time."""
    write_run(Workspace(str(tmp_path / "workspace")), "unchanged", hours=2)
    return tmp_path / "workspace"


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_missed_run_starts_immediately_and_stops_with_the_schedule(behind: Path, tmp_path: Path, number: int) -> None:
    child = f"trap 'touch {tmp_path}/ended; exit 0' TERM; echo the child runs >&2; sleep 600 & wait"
    code = f"""
from infra.reindex.scheduler import schedule
from searchforge.config import Config
from searchforge.console import logs
logs.configure("text")
schedule(Config.model_validate({_config(behind).model_dump(mode="json")!r}), ["sh", "-c", {child!r}])
"""
    with _process("-c", code) as (running, end):
        running.wait_for("was missed and starts now")
        running.wait_for("the child runs")
        assert end(number) == 0
        running.wait_for("the schedule has stopped")
    assert (tmp_path / "ended").exists()


def test_no_run_starts_before_it_is_due(tmp_path: Path) -> None:
    with _schedule(tmp_path / "workspace", f"touch {tmp_path}/started", cron="0 0 29 2 *") as running:
        assert "02-29 00:00 UTC" in running.wait_for("the first run starts at")
        running.stop()
        running.wait_for("the schedule has stopped")
    assert not (tmp_path / "started").exists()


def test_a_run_that_does_not_stop_is_killed_with_its_children(behind: Path, tmp_path: Path) -> None:
    child = f"trap '' TERM; sleep 600 & echo $! > {tmp_path}/half; mv {tmp_path}/half {tmp_path}/pid; wait"
    with _schedule(behind, child, grace_seconds=0.1) as running:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        other = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
        assert other.exists()
        running.stop()
        running.wait_for("stopping the run in progress; it is killed after 0 s")
    while other.exists() and other.read_text().split()[2] != "Z":  # until the kernel has ended it
        os.sched_yield()


@pytest.mark.parametrize(
    ("child", "how"), [("exit 1", "exited with code 1"), ("kill -SEGV $$", "was killed by SIGSEGV")]
)
def test_a_failing_run_does_not_stop_the_schedule(behind: Path, child: str, how: str) -> None:
    with _schedule(behind, child, trigger=OFTEN) as running:
        url = running.wait_for("metrics: ").split()[-1]
        running.wait_for(how)
        running.wait_for(how)
        assert _metric(url, "searchforge_schedule_failures_total") >= 2
        assert _metric(url, "searchforge_status_read") == 1
        running.stop()


def test_a_run_due_during_another_one_is_skipped(behind: Path) -> None:
    with _schedule(behind, "exec sleep 600", trigger=OFTEN) as running:
        url = running.wait_for("metrics: ").split()[-1]
        running.wait_for("skipping a scheduled run: the previous one is in progress; the next one is at")
        assert _metric(url, "searchforge_schedule_overlaps_total") >= 1
        assert _metric(url, "searchforge_schedule_failures_total") == 0
        running.stop()


def test_a_run_refused_because_another_process_holds_the_lease_is_skipped(behind: Path) -> None:
    storage = Workspace(str(behind)).storage
    with lease.acquire(storage, "manual", lease_seconds=60), _schedule(behind, "exit 1") as running:
        url = running.wait_for("metrics: ").split()[-1]
        running.wait_for("skipping a scheduled run: run manual (process")
        assert _metric(url, "searchforge_schedule_overlaps_total") == 1
        assert _metric(url, "searchforge_schedule_failures_total") == 0
        running.stop()


def test_the_command_starts_runs_with_its_own_configuration(tmp_path: Path) -> None:
    write_run(Workspace(str(tmp_path)), "failed", hours=2, failures=5, failed_stage="index", error="disk full")
    options = ["--workspace", str(tmp_path), "--cron", EVERY_MINUTE, "--log-format", "json"]
    with _process("-m", "infra", "schedule", *options, "--set", "reindex.max_failures=4") as (running, end):
        refusal = json.loads(running.wait_for("consecutive runs of reindex failed"))
        assert refusal["severity"] == "ERROR" and refusal["message"].startswith("5 consecutive runs")
        assert json.loads(running.wait_for("exited with code 1"))["severity"] == "INFO"
        assert end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "schedule.cron is not set"),
        (["--cron", "0 25 * * *"], "'25' is not a valid hour"),
        (["--cron", "0 3 * * *", "--timezone", "Nowhere"], "schedule.timezone 'Nowhere' is unknown"),
        (["--cron", "0 3 * * *", "--metrics-port", "70000"], "schedule.metrics_port"),
    ],
)
def test_an_invalid_schedule_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    from infra.cli.main import main

    result = CliRunner().invoke(main, ["schedule", "--workspace", str(tmp_path), *options])
    assert result.exit_code == 2 and message in result.output


def test_runs_receive_the_configuration_of_the_schedule(tmp_path: Path) -> None:
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
