"""A run that was killed counts as failed: in the status at once, and in the journal when the next run finds it."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.reindex import journal, lease, metrics
from infra.reindex.journal import Run
from infra.reindex.run import StageFunctions, reindex
from infra.reindex.status import read_status
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, ReindexConfig
from searchforge.errors import JobError
from tests.infra.reindex.sample_journal import PLAN, acquire_lease_and_die, stage, write_run

WORK = PLAN.model_copy(update={"embed": True, "index": True, "check": True, "publish": True})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def _config(workspace: Workspace, max_failures: int = 3) -> Config:
    return Config(workspace=workspace.root, reindex=ReindexConfig(max_failures=max_failures))


def _kill_a_run(workspace: Workspace, hours: float, minutes_alive: float, **fields: object) -> Run:
    """Leaves the journal entry and the lease of a run whose process was killed, and which renewed its lease before."""
    run = write_run(workspace, "running", hours, **fields)
    acquire_lease_and_die(workspace, run.run)
    held = lease.read(workspace.storage)
    assert held
    renewed = (datetime.fromisoformat(run.started) + timedelta(minutes=minutes_alive)).isoformat()
    workspace.storage.write(lease.LEASE, held.model_copy(update={"renewed": renewed}).model_dump_json().encode())
    return run


def test_the_next_run_records_a_killed_one_and_notifies(workspace: Workspace) -> None:
    write_run(workspace, "failed", 5, failures=1, failed_stage="index", error="disk full")
    killed = _kill_a_run(workspace, 3, 30, failures=1, plan=WORK, stages=(stage("embed", 4.0),))
    notified: list[Run] = []
    functions = StageFunctions(notify=lambda _, run: notified.append(run))
    with pytest.raises(JobError, match=r"2 consecutive runs of reindex failed, the last one at index: .*killed"):
        reindex(_config(workspace, max_failures=2), functions=functions)
    recorded = journal.read(workspace.storage, killed.run)
    assert recorded and notified == [recorded]
    assert (recorded.state, recorded.failed_stage, recorded.failures) == ("failed", "index", 2)
    assert recorded.ended
    lived = datetime.fromisoformat(recorded.ended) - datetime.fromisoformat(recorded.started)
    assert lived == timedelta(minutes=30)
    with pytest.raises(JobError, match="2 consecutive runs"):
        reindex(_config(workspace, max_failures=2), functions=functions)
    assert notified == [recorded], "it is reported once"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"plan": None}, "plan"),
        ({"plan": WORK}, "embed"),
        ({"plan": WORK, "stages": (stage("embed", 1.0), stage("index", 1.0, "503"))}, "index"),
        ({"plan": WORK, "stages": (stage("embed", 1.0),), "release": "a"}, "prune"),
    ],
)
def test_the_stage_of_a_killed_run_is_the_one_that_had_not_ended(
    workspace: Workspace, fields: dict[str, object], expected: str
) -> None:
    _kill_a_run(workspace, 3, 30, **fields)
    with pytest.raises(JobError):
        reindex(_config(workspace, max_failures=1), functions=StageFunctions(notify=lambda *_: None))
    assert [run.failed_stage for run in journal.runs(workspace.storage)] == [expected]


def test_killed_runs_fail_the_check_of_the_status_like_other_failures(workspace: Workspace) -> None:
    for number in (1, 2):
        write_run(workspace, "failed", 10 - number, failures=number)
    config = _config(workspace)
    assert read_status(config).failures == 2 and not read_status(config).stopped
    killed = _kill_a_run(workspace, 1, 30, failures=2)
    status = read_status(config)
    assert (status.failures, status.stopped, status.state(killed)) == (3, True, "died")
    assert "searchforge_reindex_consecutive_failures 3.0" in metrics.text(config)
    result = CliRunner().invoke(main, ["status", "--workspace", workspace.root, "--check"])
    assert result.exit_code == 1 and "3 consecutive runs failed" in result.output


def test_a_run_in_progress_does_not_count_as_failed(workspace: Workspace) -> None:
    write_run(workspace, "failed", 5, failures=1)
    run = write_run(workspace, "running", 0.1, failures=1)
    with lease.acquire(workspace.storage, run.run, lease_seconds=60):
        assert read_status(_config(workspace)).failures == 1
