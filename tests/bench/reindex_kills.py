"""Kills `reindex` with SIGKILL at random moments, its processes with it, and holds what comes of it against undisturbed
runs on the same corpus.

    python -m tests.bench.reindex_kills 300

The corpus changes in rounds. In each, a workspace is brought up undisturbed, and another one by runs that are killed,
until there were enough of them or one ended by itself. Every other moment is drawn from what the undisturbed run took
for the stages that are left; the others from one stage, so that the short ones are hit as often. Then one more run must
find both the same: release, bytes of its files, artifacts. Prints counts by the stage that was hit, as JSON.
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
from tests.infra.reindex.tiny_reindex import World, make_world

STAGES = ("plan", "train", "embed", "index", "check", "publish", "prune")
KINDS = ("encoders", "embeddings", "searchers", "checks", "releases")
MOST_KILLS = 12
"""In a round, after which an undisturbed run ends it."""

_SETTINGS = {"reindex__keep_releases": 2, "reindex__keep_days": 1, "reindex__keep_runs": 20}
_DAYS = 3
"""That pass in a round, so that what is not needed is deleted under kills, too."""


def run_kills(kills: int, root: Path, seed: int = 0, images: int = 40, most_kills: int = MOST_KILLS) -> dict[str, Any]:
    """Returns counts; raises AssertionError where anything is not as without kills.

    Args:
      kills: how many at least.
      root: folder for the corpus and both workspaces.
      most_kills: in a round.
    """
    undisturbed = make_world(root, images, str(root / "undisturbed"), **_SETTINGS)
    killed = make_world(root, images, str(root / "killed"), **_SETTINGS)
    generator, hit = random.Random(seed), Counter[str]()
    rounds = ended = 0
    now = undisturbed.workspace.storage.now()
    start = time.monotonic()
    seconds: list[float] = []
    import_all()
    while hit.total() < kills:
        if rounds:
            undisturbed.change(generator, rounds)
        began = time.monotonic()
        assert _run(undisturbed.config, now) is None
        seconds.append(time.monotonic() - began)
        stage: str | None = "start"
        for number in range(most_kills):
            durations = _left(undisturbed, stage, seconds[-1])
            chosen, span = generator.choice([*durations.items()]) if number % 2 else ("start", sum(durations.values()))
            stage = _run(killed.config, now, (chosen, generator.uniform(0, span)))
            if stage is None:
                ended += 1
                break
            hit[stage] += 1
        assert _run(killed.config, now) is None
        _compare(undisturbed, killed)
        rounds += 1
        now += timedelta(days=_DAYS)
    _require_tidy(killed, now)
    return {
        "kills": hit.total(),
        "hit": {stage: hit[stage] for stage in ("start", *STAGES) if hit[stage]},
        "rounds": rounds,
        "ended_by_themselves": ended,
        "undisturbed_seconds": round(sorted(seconds)[len(seconds) // 2], 2),
        "seconds": round(time.monotonic() - start, 1),
    }


def import_all() -> None:
    """Imports what a run of `reindex` needs without training, here and in the fork server that forks share."""
    from searchforge.console import logs
    from searchforge.console.options import import_quietly

    logs.configure("text")
    import_quietly("apache_beam")
    stages = ("beam_jobs.embed", "indexer.build", "serving_check.check", "ai_edge_litert.interpreter")
    for name in (*stages, "infra.reindex.run", "infra.reindex.notify"):
        importlib.import_module(name)
    for module in ("indexer.device.worker", "indexer.corpus.text_embedder", "serving_check.measurement.task_library"):
        isolated.Session(module).close()


def _run(config: Config, now: datetime, kill: tuple[str, float] | None = None) -> str | None:
    """Runs `reindex` in a process group of its own.

    Args:
      kill: a stage, and how many seconds after its beginning the group is killed.

    Returns:
      The stage in which it was killed, None where it ended.
    """
    said = Path(f"{config.workspace}.said")
    said.write_text("")
    process = fork(lambda: api.reindex(config, now=now), said)
    if kill:
        stage, seconds = kill
        while stage != "start" and stage not in _stages(said):
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        time.sleep(seconds)
        try:
            os.killpg(process, signal.SIGKILL)
        except ProcessLookupError:  # it has not set its group yet
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return ["start", *_stages(said)][-1]
    assert os.waitstatus_to_exitcode(status) == 0, said.read_text()[-3000:]
    return None


def _stages(said: Path) -> list[str]:
    return [line for line in said.read_text(errors="replace").splitlines() if line in STAGES]


def _left(undisturbed: World, stage: str, total: float) -> dict[str, float]:
    """Returns the seconds that the undisturbed run took to begin, and for each of its stages from one on."""
    entries = {entry.stage: entry.seconds for entry in next(journal.runs(undisturbed.workspace.storage)).stages}
    names = list(entries)
    left = names[names.index(stage) :] if stage in names else names
    return {"start": total - sum(entries.values()), **{name: entries[name] for name in left}}


def _compare(undisturbed: World, killed: World) -> None:
    """The killed workspace must have the same live release, byte for byte, and nothing that only seems whole."""
    expected, found = undisturbed.workspace, killed.workspace
    id = live_release(expected)
    assert id and live_release(found) == id, f"live is {live_release(found)}, expected {id}"
    for name in ("text_searcher.tflite", "image_searcher.tflite"):
        files = [sha256_file(place.local("releases", id) / name) for place in (expected, found)]
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
    """Returns what the artifacts of a kind are, but for times and measurements."""
    keys = {
        "encoders": ("fingerprint", "files"),
        "embeddings": ("shards", "inputs", "embedded", "reused", "rejected", "digest", "base"),
        "searchers": ("files", "embeddings", "parameters", "quantizer"),
        "checks": ("files", "passed", "provenance"),
        "releases": ("files", "provenance", "fingerprint"),
    }[kind]
    markers = {id: workspace.marker(kind, id) for id in workspace.ids(kind)}
    return {id: {key: marker.get(key) for key in keys} for id, marker in markers.items()}


def _require_tidy(world: World, now: datetime) -> None:
    """A run some days later leaves nothing that is half."""
    assert _run(world.config, now + timedelta(days=30)) is None
    root = Path(world.workspace.root)
    for kind in KINDS:
        half = set(world.workspace.begun(kind)) - set(world.workspace.ids(kind))  # type: ignore[arg-type]
        assert not half, f"{kind} {half} are half"
    left = [path for path in root.rglob("*.tmp") if "cache" not in path.parts]
    assert not left, f"left: {left}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run_kills(arguments.kills, Path(folder), arguments.seed), indent=2))


if __name__ == "__main__":
    main()
