"""`searchforge status` shows runs, live releases and the lag, and detects conditions that need attention."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from unittest.mock import ANY

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from infra.cli.main import main
from infra.reindex import journal, lease, schedule_record
from infra.reindex.status import Lag, parse_age, read_status
from infra.releases.releases import rollback
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, ReindexConfig, ScheduleConfig
from searchforge.errors import UsageError
from tests.infra.reindex.sample_journal import PLAN, acquire_lease_and_die, publish, stage, write_run
from tests.infra.releases.sample_artifacts import commit_encoder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def _config(workspace: Workspace, **schedule: str) -> Config:
    return Config(workspace=workspace.root, schedule=ScheduleConfig(**schedule), reindex=ReindexConfig(max_failures=3))


def _status(workspace: Workspace, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["status", "--workspace", workspace.root, *arguments])


def test_a_workspace_without_runs_has_a_status(workspace: Workspace) -> None:
    result = _status(workspace)
    assert result.exit_code == 0, result.output
    assert "no release yet" in result.output and "none, since no schedule runs" in result.output


def test_runs_are_shown_latest_first_with_their_results(workspace: Workspace) -> None:
    old = write_run(workspace, "published", 72, release="aaaa")
    middle = write_run(workspace, "unchanged", 48, release="aaaa")
    failure = {"failed_stage": "index", "error": "disk full\nmore", "failures": 1, "trigger": "schedule"}
    last = write_run(workspace, "failed", 24, **failure)
    output = _status(workspace, "--list", "2").output
    assert output.splitlines()[-2:] == [
        f"{last.run}     schedule        60  failed at index: disk full",
        f"{middle.run}     command         60  unchanged aaaa",
    ]
    assert old.run not in output


def test_live_releases_are_shown_with_their_age(workspace: Workspace) -> None:
    release = publish(workspace)
    status = read_status(_config(workspace))
    assert {channel: live.id for channel, live in status.live.items()} == {"production": release.id}
    assert f"live production {release.id}, 10 items, 0 seconds ago" in _status(workspace).output


@pytest.mark.parametrize(
    ("state", "pending"), [("failed", (3, 2, 1)), ("published", (0, 0, 0)), ("running", (3, 2, 1))]
)
def test_the_lag_is_what_the_latest_run_planned_but_did_not_release(
    workspace: Workspace, state: journal.RunState, pending: tuple[int, ...]
) -> None:
    run = write_run(workspace, state, 2)
    lag = read_status(_config(workspace)).lag
    assert lag and (lag.added, lag.changed, lag.removed) == pending
    assert (lag.listed, lag.items) == (run.started, PLAN.items)


def test_the_lag_does_not_depend_on_the_number_of_runs_shown(workspace: Workspace) -> None:
    planned = write_run(workspace, "failed", 3, failures=1)
    write_run(workspace, "failed", 2, failures=2, plan=None, failed_stage="plan", error="no such bucket")
    lag = read_status(_config(workspace), count=1).lag
    assert lag and (lag.listed, lag.added) == (planned.started, PLAN.added)
    assert "lag             3 added, 2 changed, 1 removed" in _status(workspace, "--list", "1").output


def test_the_current_lag_is_found_by_listing_the_corpus(workspace: Workspace, tmp_path: Path) -> None:
    commit_encoder(workspace, "tiny")
    write_run(workspace, "failed", 2, failures=1)
    (tmp_path / "corpus").mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (9, 9), colour).save(tmp_path / "corpus" / f"{colour}.png")
    result = _status(workspace, "--lag", "--json", "--set", f"corpus.source={tmp_path}/corpus")
    lag = json.loads(result.stdout)["lag"]
    assert (lag["items"], lag["added"], lag["changed"], lag["removed"]) == (2, 2, 0, 0)
    assert lag["listed"] == json.loads(result.stdout)["time"]


def test_the_age_after_a_rollback_is_that_of_the_earlier_release(workspace: Workspace) -> None:
    first = publish(workspace, "a")
    before = write_run(workspace, "published", 50, release=first.id)
    second = publish(workspace, "b")
    write_run(workspace, "published", 26, release=second.id)
    assert read_status(_config(workspace)).lag == Lag(ANY, PLAN.items, 0, 0, 0)
    rollback(workspace)
    write_run(workspace, "unchanged", 2, release=second.id)
    status = read_status(_config(workspace))
    assert status.fresh == before.started
    assert status.lag and status.lag.withheld == second.id
    assert f"release {second.id} is up to date but not live (100 items" in _status(workspace).output


def test_a_run_in_progress_is_shown_with_its_holder_and_stage(workspace: Workspace) -> None:
    plan = PLAN.model_copy(update={"embed": True, "index": True, "check": True, "publish": True})
    run = write_run(workspace, "running", 0.1, plan=plan, stages=(stage("embed", 3.0), stage("index", 1.0, "503")))
    with lease.acquire(workspace.storage, run.run, lease_seconds=60):
        status = read_status(_config(workspace))
        assert status.running and (status.running.run, status.running.stage) == (run.run, "index")
        assert status.state(run) == "running" and not status.running.died
    status = read_status(_config(workspace))
    assert status.running is None and status.state(run) == "died"


def test_a_killed_run_is_shown_as_died(workspace: Workspace) -> None:
    plan = PLAN.model_copy(update={"embed": True, "index": True, "check": True, "publish": True})
    run = write_run(workspace, "running", 0.1, plan=plan)
    acquire_lease_and_die(workspace, run.run)
    status = read_status(_config(workspace))
    assert status.running and status.running.died and status.state(run) == "died"
    output = _status(workspace).output
    where = f"{run.run} on {status.running.host}"
    assert f"died            {where} at embed, 0 seconds ago; the next run takes over" in output
    assert "died at embed" in output.splitlines()[-1] and "running" not in output


def test_the_next_run_is_that_of_the_running_schedule(workspace: Workspace) -> None:
    configured = _config(workspace, cron="0 5 * * *")
    assert read_status(configured).next_run is None
    assert "none, since no schedule runs" in _status(workspace).output
    running = ScheduleConfig(cron="30 3 * * *", timezone="Asia/Kolkata")
    with schedule_record.kept(workspace.storage, running):
        next_run = read_status(configured).next_run
        assert next_run and next_run.endswith("T03:30:00+05:30")
        output = _status(workspace).output
        assert "03:30+05:30, by the schedule '30 3 * * *' (process " in output
    assert read_status(configured).next_run is None
    result = _status(workspace, "--set", "schedule.cron=61 3 * * *")
    assert result.exit_code == 2 and "'61' is not a valid minute" in result.output


def test_the_record_of_a_killed_schedule_is_not_shown(workspace: Workspace) -> None:
    with schedule_record.kept(workspace.storage, ScheduleConfig(cron="30 3 * * *")):
        record = schedule_record.read(workspace.storage)
    assert record
    killed = record.model_copy(update={"process": "1"})
    elsewhere = record.model_copy(update={"machine": "other"})
    silent = elsewhere.model_copy(update={"renewed": record.renewed - timedelta(hours=1)})
    for each, shown in ((record, True), (elsewhere, True), (killed, False), (silent, False)):
        workspace.storage.write(schedule_record.RECORD, each.model_dump_json().encode())
        assert (read_status(_config(workspace)).next_run is not None) is shown
    workspace.storage.write(schedule_record.RECORD, b"{")
    assert read_status(_config(workspace)).next_run is None


def test_stopped_runs_and_an_old_index_fail_the_check(workspace: Workspace) -> None:
    write_run(workspace, "unchanged", 30, release=publish(workspace).id)
    assert _status(workspace, "--check").exit_code == 0
    assert _status(workspace, "--check", "--max-age", "31h").exit_code == 0
    assert _status(workspace, "--check", "--max-age", "29h").exit_code == 1
    for number in (1, 2):
        write_run(workspace, "failed", 10 - number, failures=number)
    assert _status(workspace, "--check").exit_code == 0
    write_run(workspace, "failed", 1, failures=3)
    result = _status(workspace, "--check")
    assert result.exit_code == 1
    assert "3 consecutive runs failed; `searchforge reindex --resume` starts again" in result.output
    assert _status(workspace).exit_code == 0


def test_an_index_without_a_successful_run_is_too_old(workspace: Workspace) -> None:
    write_run(workspace, "failed", 1, failures=1)
    assert _status(workspace, "--check", "--max-age", "1000d").exit_code == 1


def test_the_age_counts_from_the_listing_of_the_corpus(workspace: Workspace) -> None:
    success = write_run(workspace, "published", 50, release=publish(workspace).id)
    for hours in range(1, 20):
        write_run(workspace, "failed", hours, failures=1)
    assert read_status(_config(workspace), count=5).fresh == success.started


def test_the_status_is_json_on_request(workspace: Workspace) -> None:
    release, run = publish(workspace), write_run(workspace, "published", 1)
    report = json.loads(_status(workspace, "--json").stdout)
    assert report["live"]["production"]["id"] == release.id
    assert report["runs"][0]["run"] == run.run and report["runs"][0]["plan"]["added"] == 3


def test_reading_the_status_changes_nothing(workspace: Workspace) -> None:
    publish(workspace)
    write_run(workspace, "published", 1)
    before = {path: path.stat().st_mtime_ns for path in Path(workspace.root).rglob("*")}
    assert _status(workspace).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in Path(workspace.root).rglob("*")} == before


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5m", 90), ("26h", 93600), ("2d", 172800)])
def test_ages_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["26", "h", "-1h", "1 h", "1w", "1e9s"])
def test_an_age_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 26h"):
        parse_age(text)
