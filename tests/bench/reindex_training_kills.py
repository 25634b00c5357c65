"""Kills `searchforge reindex` with SIGKILL while it trains, and holds the release against that of an undisturbed run.

    python -m tests.bench.reindex_training_kills 20

Every run is the command itself, on drawn scenes, with the real trainer on a local Ray cluster; after one that ended by
itself the next begins in an empty workspace. Prints counts by the stage that was hit, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from infra.releases import find_release, live_release
from infra.scenes import write_scenes
from searchforge.config import Config, load_config
from searchforge.workspace import Workspace

STAGES = ("plan", "train", "embed", "index", "check", "publish", "prune")
TRAINED = 0.8
"""Kills are drawn from this share of an undisturbed run, most of which is training."""

_VALUES = {
    "train.epochs": 4,
    "train.batch_size": 50,
    "train.heads": 2,
    "train.views": 2,
    "check.min_recall_at_10": 0.5,
    "check.max_latency_growth": None,
}


def run_kills(kills: int, root: Path, seed: int = 0, scenes: int = 120) -> dict[str, Any]:
    """Returns counts; raises AssertionError where a release is not that of the undisturbed run."""
    captions = write_scenes(root / "corpus", scenes)
    data = {"data.captions": str(captions), "data.images": str(root / "corpus" / "images")}
    undisturbed, killed = (
        load_config(None, {"workspace": str(root / name), **data, **_VALUES}) for name in ("undisturbed", "killed")
    )
    generator, hit = random.Random(seed), Counter[str]()
    start = time.monotonic()
    assert _run(undisturbed) is None
    seconds = time.monotonic() - start
    rounds = 0
    while hit.total() < kills:
        stage: str | None = "start"
        while stage and hit.total() < kills:
            stage = _run(killed, generator.uniform(0, TRAINED * seconds))
            if stage:
                hit[stage] += 1
        if stage:
            assert _run(killed) is None
        assert _released(undisturbed) == _released(killed)
        shutil.rmtree(killed.workspace)
        rounds += 1
    return {
        "kills": hit.total(),
        "hit": {stage: hit[stage] for stage in ("start", *STAGES) if hit[stage]},
        "rounds": rounds,
        "undisturbed_seconds": round(seconds, 1),
        "seconds": round(time.monotonic() - start, 1),
    }


def _run(config: Config, kill_after: float | None = None) -> str | None:
    """Runs the command; returns the stage in which it was killed, None where it ended."""
    settings, said = Path(f"{config.workspace}.yaml"), Path(f"{config.workspace}.said")
    settings.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "infra", "reindex", "--config", str(settings)]
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        code = process.wait(kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return ["start", *(line for line in said.read_text().splitlines() if line in STAGES)][-1]
    assert code == 0, said.read_text()[-3000:]
    return None


def _released(config: Config) -> tuple[str, dict[str, Any]]:
    """Returns id, and bytes and SHA-256 of the files, of the live release."""
    workspace = Workspace(config.workspace)
    id = live_release(workspace)
    assert id
    return id, find_release(workspace, id)[0].files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run_kills(arguments.kills, Path(folder), arguments.seed), indent=2))


if __name__ == "__main__":
    main()
