"""Kills re-indexing and its child processes at random times and compares the result with uninterrupted runs.

    python -m tests.bench.reindex_kills 300

The corpus changes in rounds. In each round, one workspace is re-indexed without interruption, and another one by runs
that are killed, until the limit of the round or until a run finishes. Half of the kill times are uniform over the
remaining duration; the others are uniform within one stage, so that short stages are hit as often. After one more run,
both workspaces must have the same artifacts and releases, byte for byte. Prints the kills by stage as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from infra import api
from infra.reindex import journal, lease
from infra.releases.releases import live_release
from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.hashing import sha256_file
from searchforge.processes import isolated
from tests.infra.forked import fork
from tests.infra.reindex.scenario import Scenario, make_scenario

STAGES = ("plan", "train", "embed", "index", "check", "publish", "prune")
KINDS = ("encoders", "embeddings", "searchers", "checks", "releases")
KILLS_PER_ROUND = 12
"""Maximum number of kills in a round, which an uninterrupted run then completes."""

_SETTINGS = {
    "reindex__keep_releases": 2,
    "reindex__keep_days": 1,
    "reindex__keep_runs": 20,
    "reindex__max_failures": KILLS_PER_ROUND + 1,
}
_DAYS = 3
"""Simulated days per round, so that retention also deletes artifacts during kills."""


def run_kills(
    kills: int, root: Path, seed: int = 0, images: int = 40, kills_per_round: int = KILLS_PER_ROUND
) -> dict[str, Any]:
    """Returns counts; raises AssertionError if kills change the result.

    Args:
      kills: Minimum number of kills.
      root: Folder for the corpus and both workspaces.
      kills_per_round: Maximum number of kills in a round.
    """
    uninterrupted = make_scenario(root, images, str(root / "uninterrupted"), **_SETTINGS)
    killed = make_scenario(root, images, str(root / "killed"), **_SETTINGS)
    generator, hit = random.Random(seed), Counter[str]()
    rounds = finished = 0
    now = uninterrupted.workspace.storage.now()
    start = time.monotonic()
    seconds: list[float] = []
    import_all()
    while hit.total() < kills:
        if rounds:
            uninterrupted.change(generator, rounds)
        began = time.monotonic()
        assert _run(uninterrupted.config, now) is None
        seconds.append(time.monotonic() - began)
        stage: str | None = "start"
        for number in range(kills_per_round):
            durations = _remaining_durations(uninterrupted, stage, seconds[-1])
            chosen, span = generator.choice([*durations.items()]) if number % 2 else ("start", sum(durations.values()))
            stage = _run(killed.config, now, (chosen, generator.uniform(0, span)))
            if stage is None:
                finished += 1
                break
            hit[stage] += 1
        assert _run(killed.config, now) is None
        _compare(uninterrupted, killed)
        rounds += 1
        now += timedelta(days=_DAYS)
    _assert_no_leftovers(killed, now)
    return {
        "kills": hit.total(),
        "hit": {stage: hit[stage] for stage in ("start", *STAGES) if hit[stage]},
        "rounds": rounds,
        "ended_by_themselves": finished,
        "undisturbed_seconds": round(sorted(seconds)[len(seconds) // 2], 2),
        "seconds": round(time.monotonic() - start, 1),
    }


def import_all() -> None:
    """Imports what re-indexing without training needs, in this process and in the fork server that its forks share."""
    from searchforge.console import logs
    from searchforge.native_output import import_quietly

    logs.configure("text")
    import_quietly("apache_beam")
    stages = ("beam_jobs.embed", "indexer.build", "serving_check.check", "ai_edge_litert.interpreter")
    for name in (*stages, "infra.reindex.run", "infra.reindex.notify"):
        importlib.import_module(name)
    for module in (
        "indexer.device.worker",
        "searchforge.processes.task_library",
        "serving_check.measurement.task_library",
    ):
        isolated.Session(module).close()


def _run(config: Config, now: datetime, kill: tuple[str, float] | None = None) -> str | None:
    """Re-indexes in a process group of its own.

    Args:
      kill: Stage, and seconds after its start, at which to kill the group.

    Returns:
      The stage in which it was killed, or None if it finished.
    """
    log = Path(f"{config.workspace}.log")
    log.write_text("")
    process = fork(lambda: api.reindex(config, now=now), log)
    if kill:
        stage, seconds = kill
        while stage != "start" and stage not in _stages(log):
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        time.sleep(seconds)
        try:
            os.killpg(process, signal.SIGKILL)
        except ProcessLookupError:  # the child has not created its group yet
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return ["start", *_stages(log)][-1]
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()[-3000:]
    return None


def _stages(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines() if line in STAGES]


def _remaining_durations(uninterrupted: Scenario, stage: str, total: float) -> dict[str, float]:
    """Returns the seconds that the uninterrupted run took to start, and for each stage from `stage` on."""
    entries = {entry.stage: entry.seconds for entry in next(journal.runs(uninterrupted.workspace.storage)).stages}
    names = list(entries)
    remaining = names[names.index(stage) :] if stage in names else names
    return {"start": total - sum(entries.values()), **{name: entries[name] for name in remaining}}


def _compare(uninterrupted: Scenario, killed: Scenario) -> None:
    """Asserts that the live release and the artifacts of the killed workspace are complete and as expected."""
    expected, found = uninterrupted.workspace, killed.workspace
    id = live_release(expected)
    assert id and live_release(found) == id, f"live is {live_release(found)}, expected {id}"
    for name in ("text_searcher.tflite", "image_searcher.tflite"):
        files = [sha256_file(workspace.local("releases", id) / name) for workspace in (expected, found)]
        assert files[0] == files[1], f"{name} differs"
    for kind in KINDS:
        assert _content(expected, kind) == _content(found, kind), f"{kind} differ"
    for embeddings in found.ids("embeddings"):
        manifest = Manifest.model_validate(found.marker("embeddings", embeddings))
        assert len(list(read_shards(found, manifest))) == manifest.records
    held = lease.read(found.storage)
    assert held and held.state == "free"
    last = next(journal.runs(found.storage))
    assert last.state in ("published", "unchanged") and last.failures == 0


def _content(workspace: Workspace, kind: Any) -> Mapping[str, Any]:
    """Returns the artifacts of a kind, without times and measurements."""
    keys = {
        "encoders": ("fingerprint", "files"),
        "embeddings": ("shards", "inputs", "embedded", "reused", "rejected", "digest", "base"),
        "searchers": ("files", "embeddings", "parameters", "quantizer"),
        "checks": ("files", "passed", "provenance"),
        "releases": ("files", "provenance", "fingerprint"),
    }[kind]
    markers = {id: workspace.marker(kind, id) for id in workspace.ids(kind)}
    return {id: {key: marker.get(key) for key in keys} for id, marker in markers.items()}


def _assert_no_leftovers(scenario: Scenario, now: datetime) -> None:
    """Asserts that a run some days later leaves no incomplete artifacts or temporary files."""
    assert _run(scenario.config, now + timedelta(days=30)) is None
    root = Path(scenario.workspace.root)
    for kind in KINDS:
        incomplete = set(scenario.workspace.all_ids(kind)) - set(scenario.workspace.ids(kind))  # type: ignore[arg-type]
        assert not incomplete, f"{kind} {incomplete} are incomplete"
    leftovers = [path for path in root.rglob("*.tmp") if "cache" not in path.parts]
    assert not leftovers, f"leftovers: {leftovers}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run_kills(arguments.kills, Path(folder), arguments.seed), indent=2))


if __name__ == "__main__":
    main()
