"""Metrics are valid Prometheus text, agree with the journal and the releases, and are served on localhost only."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from infra.cli.main import main
from infra.reindex import journal, lease, metrics, schedule_record
from infra.reindex.journal import ItemsEntry
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, ReindexConfig, ScheduleConfig
from searchforge.errors import UsageError
from tests.infra.manual_clock import ManualClock
from tests.infra.reindex.sample_journal import publish, stage, write_run

ROOT = Path(__file__).parents[3]

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def _config(workspace: Workspace) -> Config:
    reindex = ReindexConfig(max_failures=2)
    return Config(workspace=workspace.root, schedule=ScheduleConfig(cron="0 3 * * *"), reindex=reindex)


def _samples(text: str) -> Samples:
    return {
        (sample.name.removeprefix("searchforge_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_metrics_agree_with_the_journal_and_the_releases(workspace: Workspace) -> None:
    release = publish(workspace)
    done = write_run(
        workspace, "published", 9, release=release.id, stages=(stage("embed", 9.0, "503"), stage("embed", 4.0))
    )
    write_run(workspace, "unchanged", 6, release=release.id)
    success = write_run(workspace, "unchanged", 5, release=release.id)
    failed = write_run(workspace, "failed", 2, failures=2, stages=(stage("index", 7.0, "disk full"),))
    with schedule_record.kept(workspace.storage, ScheduleConfig(cron="0 3 * * *")):
        samples = _samples(metrics.text(_config(workspace)))
    assert _value(samples, "status_read") == 1
    assert _value(samples, "reindex_consecutive_failures") == 2
    assert _value(samples, "reindex_stopped") == 1 and _value(samples, "reindex_running") == 0
    counts = {"published": 1, "unchanged": 2, "failed": 1, "running": 0, "died": 0}
    assert {state: _value(samples, "reindex_recent_runs", state=state) for state in counts} == counts
    assert _value(samples, "reindex_last_run_state", state="failed") == 1
    for name, moment in (("start", failed.started), ("end", failed.ended or "")):
        expected = datetime.fromisoformat(moment).timestamp()
        assert _value(samples, f"reindex_last_run_{name}_timestamp_seconds") == pytest.approx(expected)
    fresh = datetime.fromisoformat(success.started).timestamp()
    assert _value(samples, "reindex_last_success_timestamp_seconds") == pytest.approx(fresh)
    assert _value(samples, "reindex_stage_duration_seconds", stage="embed") == 4
    assert ("reindex_stage_duration_seconds", (("stage", "index"),)) not in samples
    assert _value(samples, "corpus_items") == done.plan.items  # type: ignore[union-attr]
    for change, count in (("added", 3), ("changed", 2), ("removed", 1)):
        assert _value(samples, "corpus_pending_items", change=change) == count
    assert _value(samples, "schedule_next_run_timestamp_seconds") % 86400 == 3 * 3600
    assert _value(samples, "release_info", channel="production", release=release.id, encoder="e") == 1
    assert _value(samples, "release_images", channel="production") == 10
    assert _value(samples, "release_recall_at_10", channel="production") == 0.97
    assert _value(samples, "release_latency_seconds", channel="production") == 0.005
    assert _value(samples, "release_size_bytes", channel="production") == release.bytes
    created = datetime.fromisoformat(release.created).timestamp()
    assert _value(samples, "release_created_timestamp_seconds", channel="production") == pytest.approx(created)


def test_a_run_in_progress_is_reported(workspace: Workspace) -> None:
    run = write_run(workspace, "running", 0.1)
    with lease.acquire(workspace.storage, run.run, lease_seconds=60):
        samples = _samples(metrics.text(_config(workspace)))
    assert _value(samples, "reindex_running") == 1
    assert _value(samples, "reindex_last_run_state", state="running") == 1


def test_names_and_help_follow_prometheus_conventions(workspace: Workspace) -> None:
    publish(workspace)
    write_run(workspace, "published", 1, stages=(stage("embed", 1.0),))
    for family in text_string_to_metric_families(metrics.text(_config(workspace))):
        assert re.fullmatch(r"searchforge_[a-z0-9_]+[a-z0-9]", family.name)
        assert family.documentation.endswith(".") and family.samples
        assert not re.search(r"_(ms|minutes|hours|mb|kb|total)$", family.name) or family.type == "counter"


def test_a_workspace_without_runs_has_metrics(workspace: Workspace) -> None:
    samples = _samples(metrics.text(Config(workspace=workspace.root)))
    assert _value(samples, "status_read") == 1
    assert not any("timestamp" in name for name, _ in samples)


def test_an_unreadable_workspace_reports_nothing_but_the_failure(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(workspace)
    (Path(workspace.root) / "releases" / "CURRENT.json").write_text("{")
    assert _samples(metrics.text(_config(workspace))) == {("status_read", ()): 0}
    assert "metrics cannot be read" in capsys.readouterr().err


def test_readings_are_cached_and_ended_runs_are_read_once(workspace: Workspace) -> None:
    clock = ManualClock()
    write_run(workspace, "published", 1)
    registry = metrics.registry(_config(workspace), clock)
    first = metrics.exposition(registry)
    write_run(workspace, "failed", 0.5, failures=1)
    clock.sleep(metrics.CACHE_SECONDS - 0.1)
    assert metrics.exposition(registry) == first
    clock.sleep(0.2)
    for path in (Path(workspace.root) / journal.FOLDER).iterdir():
        if '"published"' in path.read_text():
            path.write_text("{}")
    counted = _samples(metrics.exposition(registry))
    assert _value(counted, "reindex_recent_runs", state="failed") == 1
    assert _value(counted, "reindex_recent_runs", state="published") == 1


def test_metrics_are_served_on_localhost_only(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    registry = metrics.registry(_config(workspace))
    with metrics.serve(registry, 0):
        url = capsys.readouterr().err.split()[-1]
        with urllib.request.urlopen(url) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert _value(_samples(answer.read().decode()), "status_read") == 1
        port = int(url.split(":")[2].split("/")[0])
        in_use = pytest.raises(UsageError, match=f"port {port} is in use; choose another schedule.metrics_port")
        with in_use, metrics.serve(registry, port):
            pass
        other = socket.gethostbyname(socket.gethostname())
        if other != metrics.HOST:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, port), timeout=5)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)


def test_the_command_prints_metrics_or_writes_a_file(workspace: Workspace, tmp_path: Path) -> None:
    write_run(workspace, "published", 1)
    options = ["status", "--workspace", workspace.root, "--prometheus"]
    printed = CliRunner().invoke(main, options)
    assert printed.exit_code == 0
    file = tmp_path / "textfile" / "searchforge.prom"
    written = CliRunner().invoke(main, [*options, "--output", str(file)])
    assert written.exit_code == 0 and written.stdout == ""
    assert file.read_text() == printed.stdout
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o444 == 0o444
    assert _value(_samples(printed.stdout), "status_read") == 1


def test_documented_metrics_exist(workspace: Workspace) -> None:
    release = publish(workspace)
    items = ItemsEntry(embeddings="abc", items=10, embedded=0, reused=9, rejected={"truncated": 1})
    write_run(workspace, "published", 1, release=release.id, stages=(stage("embed", 1.0),), items=items)
    registry = metrics.registry(_config(workspace))
    metrics.schedule_counters(registry)
    with schedule_record.kept(workspace.storage, ScheduleConfig(cron="0 3 * * *")):
        told = {name for name, _ in _samples(metrics.exposition(registry))}
    page = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"searchforge_([a-z0-9_]+)", page))
    assert named and named <= told
