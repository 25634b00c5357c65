"""Runs `searchforge run` in a fresh workspace and prints what it cost and what came out, as one JSON object.

python -m tests.bench.full_run --captions C.json --images FOLDER [any other option of `searchforge run`]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.5


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "infra", "run", "--workspace", f"{folder}/workspace", "--json", *arguments]
        output, memory = _measured(command)
    print(json.dumps(_figures(json.loads(output), memory), indent=2))


def _measured(command: list[str]) -> tuple[str, int]:
    """Returns the command's output, and by how many bytes the machine's available memory fell while it ran."""
    before = lowest = _available()
    done = threading.Event()

    def watch() -> None:
        nonlocal lowest
        while not done.wait(SAMPLE_SECONDS):
            lowest = min(lowest, _available())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        done.set()
        watcher.join()
    return result.stdout, before - lowest


def _available() -> int:
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert found
    return int(found.group(1)) * 1024


def _figures(report: dict[str, Any], memory: int) -> dict[str, Any]:
    training = report["reports"]["train"]["report"]
    manifest, build = report["reports"]["embed"], report["reports"]["index"]
    figures = report["release"]["figures"]
    files = report["release"]["files"]
    return {
        "seconds": {**report["seconds"], "total": round(sum(report["seconds"].values()), 1)},
        "peak_memory_bytes": memory,
        "train": {name: training[name] for name in ("images", "seconds", "images_per_second", "captions_per_second")},
        "embed_images_per_second": round(manifest["embedded"] / manifest["seconds"], 1),
        "index_seconds": build["seconds"],
        "float_model": training["heldout"],
        "searcher": {
            name: value
            for name, value in figures.items()
            if name in ("gallery", "queries", "bytes_per_image")
            or name.startswith(("r_at", "exact", "recall", "lat", "enc"))
        },
        "searcher_bytes": {name: file["bytes"] for name, file in files.items()},
        "encoders": training["agreement"],
        "text_encoder_forms": training["forms"],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
