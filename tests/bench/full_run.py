"""Runs `searchforge run` and `eval --compare-forms` in a fresh workspace; prints costs and results as JSON.

python -m tests.bench.full_run --captions C.json --images FOLDER [any other option of `searchforge run`]
"""

from __future__ import annotations

import argparse
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
        output, memory = _run_measured(command)
        forms = _compare_forms(f"{folder}/workspace", arguments)
    print(json.dumps({**_figures(json.loads(output), memory), "text_encoder_forms": forms}, indent=2))


def _compare_forms(workspace: str, arguments: list[str]) -> dict[str, Any]:
    """Returns the comparison of the text encoder's quantizations; options that `eval` lacks are dropped."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in ("--captions", "--images", "--set", "--config"):
        parser.add_argument(option, action="append", default=[])
    known, _ = parser.parse_known_args(arguments)
    data = [part for name, values in vars(known).items() for value in values for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "infra", "eval", "--compare-forms", "--workspace", workspace, "--json", *data]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output)["forms"]
    return found


def _run_measured(command: list[str]) -> tuple[str, int]:
    """Returns the command's output, and the maximum decrease of the machine's available memory in bytes."""
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
    }


if __name__ == "__main__":
    main(sys.argv[1:])
