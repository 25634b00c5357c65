"""Rejected items are shown with their number and reasons wherever items are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infra import api, stages
from infra.cli import summaries
from infra.cli.main import main
from infra.reindex import metrics
from infra.reindex.journal import ItemsEntry
from infra.reindex.run import StageFunctions, reindex
from infra.reindex.status import read_status
from infra.releases.releases import publish, read_release
from searchforge.artifacts.manifest import Manifest, ShardInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config
from tests.infra.reindex.sample_journal import write_run
from tests.infra.reindex.scenario import make_scenario
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


def test_the_result_of_all_stages_shows_the_outcome_of_every_item(workspace: Workspace) -> None:
    commit_searcher(workspace, "a")
    release = publish(workspace, workspace, commit_check(workspace, "check-a", "a")["id"])
    manifest = Manifest(
        id="abc",
        encoder="encoder",
        fingerprint="aaaa",
        preprocessing="",
        dim=4,
        source="photos",
        inputs=103,
        embedded=5,
        reused=95,
        rejected=3,
        rejected_by_reason=REJECTED,
        shards=(ShardInfo(name="data-00000-of-00001.tfrecord", count=100, bytes=0, sha256=""),),
        rejects=(),
        seconds=1.0,
    )
    report = api.RunReport({"embed": 1.0}, release, {"embed": manifest.model_dump()})
    assert f"\n  corpus          {COUNTS.replace('items', 'images')}\n" in summaries.run(report)


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


def test_what_could_not_be_read_is_released_once_it_can_be(tmp_path: Path) -> None:
    """A photo is missing while the first run embeds, as if its file server had failed after the listing."""
    scenario = make_scenario(tmp_path)
    photo, away = scenario.images / "007.png", tmp_path / "away.png"

    def embed_without_photo(config: Config, *arguments: Any) -> dict[str, Any]:
        photo.rename(away)
        try:
            return stages.embed(config, *arguments)
        finally:
            away.rename(photo)

    first = reindex(scenario.config, functions=replace(StageFunctions(), embed=embed_without_photo))
    assert first.items and (first.items.items, first.items.rejected) == (40, {"missing": 1})
    preview = api.preview_reindex(scenario.config)
    assert preview.entry.embed and not preview.entry.train
    assert preview.entry.reason.endswith("1 of 40 items could not be read and are tried again")
    second = reindex(scenario.config)
    assert (second.state, second.items and second.items.rejected) == ("published", {})
    assert second.release != first.release
    assert reindex(scenario.config).plan == preview.entry.model_copy(
        update={
            "mode": "nothing",
            "reason": f"the live release {second.release} matches the corpus",
            **dict.fromkeys(("embed", "index", "check", "publish"), False),
        }
    )


def test_a_file_that_stays_missing_does_not_make_every_run_publish(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path)
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"images/{number:03}.png\n" for number in range(41)))
    config = load_config(None, {**scenario.config.model_dump(), "corpus": {"source": str(listing)}})
    first = reindex(config)
    again = reindex(config)
    assert (first.state, again.state) == ("published", "unchanged")
    assert again.release == first.release
    assert again.items and again.items.rejected == {"missing": 1}
