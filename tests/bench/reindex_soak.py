"""Re-indexes a randomly changing corpus daily on a simulated clock; prints counts and figures as JSON.

    python -m tests.bench.reindex_soak 200

At the end, the live release must contain the same items as one built from scratch, with comparable recall. Disk and
memory use must not grow with the number of cycles.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from infra import api
from infra.releases.releases import find_release, live_release
from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.workspace import Workspace
from tests.bench.peak_memory import peak_memory
from tests.bench.reindex_kills import import_all
from tests.infra.reindex.scenario import Scenario, make_scenario

CHANGES = ("nothing", "touch", "add", "change", "remove", "rename", "several")
QUERIES = 40
MIN_IMAGES = 40
SETTLING_CYCLES = 50
"""Number of cycles after which disk and memory use must not grow; shorter runs do not test growth."""

_GROWTH = 1.15
_SETTINGS = {"reindex__keep_releases": 3, "reindex__keep_days": 2, "reindex__keep_runs": 10, "index__max_drift": 0.5}


def run_soak(cycles: int, root: Path, seed: int = 0, images: int = 60) -> dict[str, Any]:
    """Returns counts and figures; raises AssertionError if the result differs from a build from scratch.

    Args:
      root: Folder for the corpus and the workspaces.
    """
    scenario = make_scenario(root, images, **_SETTINGS)
    generator = random.Random(seed)
    changes, states = Counter[str](), Counter[str]()
    disk, memory, seconds = [], [], []
    now = scenario.workspace.storage.now()
    import_all()
    for cycle in range(cycles):
        change = generator.choice(CHANGES) if cycle else "nothing"
        _change(scenario, change, generator, cycle)
        start = time.monotonic()
        run = api.reindex(scenario.config, trigger="schedule", now=now)
        seconds.append(time.monotonic() - start)
        expected = "published" if cycle == 0 or change not in ("nothing", "touch") else "unchanged"
        assert run.state == expected, f"cycle {cycle}, {change}: {run.state}, expected {expected}"
        changes[change] += 1
        states[run.state] += 1
        disk.append(_bytes(Path(scenario.workspace.root)))
        memory.append(peak_memory())
        now += timedelta(days=1)
    found, fresh = _compare(scenario, root)
    for name, values in (("disk", disk), ("memory", memory)):
        early, late = max(values[:SETTLING_CYCLES]), max(values[SETTLING_CYCLES:], default=0)
        assert late <= _GROWTH * early, f"{name} grew from {early:,} to {late:,} bytes after cycle {SETTLING_CYCLES}"
    return {
        "cycles": cycles,
        "changes": dict(changes),
        "ended": dict(states),
        "recall_at_10": {"after_cycles": found, "from_nothing": fresh},
        "disk_megabytes": [round(value / 1e6, 1) for value in disk[:: max(1, cycles // 20)]],
        "memory_megabytes": [round(value / 1e6) for value in memory[:: max(1, cycles // 20)]],
        "median_cycle_seconds": round(statistics.median(seconds), 2),
        "seconds": round(sum(seconds), 1),
    }


def _change(scenario: Scenario, change: str, generator: random.Random, cycle: int) -> None:
    paths = sorted(scenario.images.iterdir())
    path = generator.choice(paths)
    if change == "touch":
        path.touch()
    elif change == "add" or (change == "remove" and len(paths) <= MIN_IMAGES):
        scenario.draw(f"added-{cycle}.png", generator.randrange(2**31))
    elif change == "change":
        scenario.draw(path.name, generator.randrange(2**31))
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(scenario.images / f"renamed-{cycle}.png")
    elif change == "several":
        scenario.change(generator, cycle)
        for gone in generator.sample(sorted(scenario.images.iterdir()), 1):
            gone.unlink()


def _compare(scenario: Scenario, root: Path) -> tuple[float, float]:
    """Returns the recall@10 of the live release, and of one built from scratch from the same corpus."""
    fresh = make_scenario(root, 0, str(root / "fresh"), **_SETTINGS)
    api.reindex(fresh.config)
    held, expected = _items(scenario.workspace), _items(fresh.workspace)
    assert {id: content for id, (content, _) in held.items()} == {id: content for id, (content, _) in expected.items()}
    recalls = _recall(scenario, expected), _recall(fresh, expected)
    assert recalls[0] >= recalls[1] - 0.05, f"recall@10 {recalls[0]:.3f}, from scratch {recalls[1]:.3f}"
    return recalls


def _items(workspace: Workspace) -> dict[str, tuple[str, Any]]:
    """Returns the content hash and the embedding of every item of the live release."""
    id = live_release(workspace)
    assert id
    release, _ = find_release(workspace, id)
    manifest = Manifest.model_validate(workspace.marker("embeddings", release.provenance["embeddings"]))
    return {record.id: (record.content_hash, record.embedding) for record in read_shards(workspace, manifest)}


def _recall(scenario: Scenario, items: dict[str, tuple[str, Any]]) -> float:
    """Returns the mean recall@10 of searches for items of the corpus."""
    ids = sorted(items)
    vectors = np.stack([items[id][1] for id in ids])
    queries = ids[:: max(1, len(ids) // QUERIES)]
    results = api.search_many(scenario.config, [str(scenario.images / id) for id in queries], 10)
    recalls = []
    for id, hits in zip(queries, results, strict=True):
        exact = {ids[row] for row in np.argsort(-(vectors @ items[id][1]), kind="stable")[:10]}
        recalls.append(len(exact & {hit.id for hit in hits}) / 10)
    return round(statistics.mean(recalls), 4)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cycles", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run_soak(arguments.cycles, Path(folder), arguments.seed), indent=2))


if __name__ == "__main__":
    main()
