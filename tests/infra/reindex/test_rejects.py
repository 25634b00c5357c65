"""Rejected items are shown with their number and reasons wherever items are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import summaries
from infra.cli.main import main
from infra.reindex import metrics
from infra.reindex.journal import ItemsEntry
from infra.reindex.status import read_status
from infra.releases.releases import publish, read_release
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from tests.infra.reindex.sample_journal import write_run
from tests.infra.releases.sample_artifacts import commit_check, commit_searcher

REJECTED = {"truncated": 2, "not_an_image": 1}
ITEMS = ItemsEntry(embeddings="abc", items=103, embedded=5, reused=95, rejected=REJECTED)
COUNTS = "103 items: 5 embedded, 95 reused, 3 rejected (2 truncated, 1 not_an_image)"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def test_the_status_shows_what_the_latest_embedding_run_rejected(workspace: Workspace) -> None:
    write_run(workspace, "published", 5, items=ITEMS)
    write_run(workspace, "failed", 2, failures=1)
    assert read_status(Config(workspace=workspace.root), count=1).items == ITEMS
    output = CliRunner().invoke(main, ["status", "--workspace", workspace.root, "--list", "1"]).output
    assert f"  corpus          {COUNTS}, listed in embeddings/abc/rejects-*.jsonl\n" in output


def test_the_result_of_a_run_shows_what_it_rejected(workspace: Workspace) -> None:
    assert COUNTS in summaries.reindex(write_run(workspace, "published", 5, items=ITEMS))


def test_metrics_count_rejected_items_by_reason(workspace: Workspace) -> None:
    write_run(workspace, "published", 5, items=ITEMS)
    lines = metrics.text(Config(workspace=workspace.root)).splitlines()
    assert "searchforge_corpus_rejected_items 3.0" in lines
    assert 'searchforge_corpus_rejected_items_by_reason{reason="truncated"} 2.0' in lines


def test_releases_show_which_items_they_lack(workspace: Workspace) -> None:
    commit_searcher(workspace, "a")
    report = commit_check(workspace, "check-a", "a", corpus={"rejected_by_reason": REJECTED})
    release = publish(workspace, workspace, report["id"])
    assert read_release(workspace, release.id).rejected == REJECTED
    assert "10, 3 rejected (2 truncated, 1 not_an_image)" in summaries.release(release)
    output = CliRunner().invoke(main, ["releases", "--workspace", workspace.root]).output
    assert "passed all its gates; 3 rejected (2 truncated, 1 not_an_image)\n" in output
    assert 'searchforge_release_rejected_items{channel="production"} 3.0' in metrics.text(
        Config(workspace=workspace.root)
    )
