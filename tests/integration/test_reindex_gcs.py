"""Re-indexing with the corpus, the workspace and the releases on a Google Cloud Storage server."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from infra import api
from infra.reindex import journal, lease, retention
from infra.releases.releases import live_release
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from searchforge.storage.factory import open_storage
from tests.infra.reindex.scenario import Scenario, make_scenario

pytestmark = pytest.mark.integration


def _upload(scenario: Scenario, bucket: str) -> None:
    """Synchronizes the bucket's photos with the scenario's folder, without rewriting unchanged objects."""
    storage = open_storage(f"{bucket}/photos")
    photos = {path.name: path for path in scenario.images.iterdir()}
    for name in storage.list_files("all"):
        if name not in photos:
            storage.delete(f"all/{name}")
    for name, path in photos.items():
        if not storage.exists(f"all/{name}") or storage.read(f"all/{name}") != path.read_bytes():
            storage.upload(path, f"all/{name}")


def test_a_changing_bucket_is_reindexed_repeatedly_and_after_a_run_died(bucket: str, tmp_path: Path) -> None:
    urls = {
        "workspace": f"{bucket}/workspace",
        "corpus__source": f"{bucket}/photos/all",
        "releases": f"{bucket}/apps",
    }
    scenario = make_scenario(
        tmp_path, **urls, reindex__lease_seconds=1.0, reindex__keep_releases=1, reindex__keep_days=0
    )
    _upload(scenario, bucket)
    target = Workspace(f"{bucket}/apps")

    first = api.reindex(scenario.config)
    assert first.state == "published" and live_release(target) == first.release
    assert api.reindex(scenario.config).state == "unchanged"

    storage = scenario.workspace.storage
    held = lease.read(storage)
    assert held
    dead = first.model_copy(update={"run": journal.run_id(), "state": "running", "fence": held.fence + 1})
    journal.write(storage, dead)
    update = {"state": "held", "run": dead.run, "fence": dead.fence, "machine": "elsewhere", "lease_seconds": 1.0}
    storage.write(lease.LEASE, held.model_copy(update=update).model_dump_json().encode())

    scenario.change(random.Random(0), 1)
    _upload(scenario, bucket)
    second = api.reindex(scenario.config)
    assert second.state == "published" and second.fence > dead.fence and live_release(target) == second.release
    assert second.plan and (second.plan.added, second.plan.changed, second.plan.removed) == (3, 1, 2)
    closed = journal.read(storage, dead.run)
    assert closed and closed.state == "failed"

    for step in (2, 3):
        scenario.change(random.Random(step), step)
        _upload(scenario, bucket)
        api.reindex(scenario.config)
    later = storage.now() + 3 * retention.MIN_AGE
    api.reindex(scenario.config, now=later)
    assert len(target.ids("releases")) == 2  # the live release and the previous one
    assert len(scenario.workspace.ids("searchers")) == len(scenario.workspace.ids("checks")) == 2
    copies = scenario.workspace.local_storage
    assert set(copies.list_folders("searchers")) <= set(scenario.workspace.ids("searchers"))
    fresh = load_config(None, {"workspace": str(tmp_path / "elsewhere"), "releases": f"{bucket}/apps"})
    image = sorted(scenario.images.iterdir())[0]
    assert api.search(fresh, str(image), 1)[0].id == image.name
