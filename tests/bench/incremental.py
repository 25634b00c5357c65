"""Compares embedding a 1 percent change of a large corpus with embedding all of it; prints JSON.

python -m tests.bench.incremental --workspace W [--encoder ID] [--images 100000] [--rounds 3]

The corpus consists of synthetic photos of 640 x 480 with distinct contents. Half of a change replaces files, a quarter
deletes files, and a quarter adds files.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageFilter

from beam_jobs.embed_images import embed_images
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from searchforge.console.options import quiet_libraries
from searchforge.native_output import import_quietly

DISTINCT = 64
"""Number of synthetic photos; the others are copies with a different comment, which cost the same to decode."""


@click.command()
@click.option("--workspace", required=True, help="Workspace with a trained encoder.")
@click.option("--encoder", help="Id; default: the workspace's first encoder.")
@click.option("--images", type=int, default=100_000, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True, help="Number of changes.")
def main(workspace: str, encoder: str | None, images: int, rounds: int) -> None:
    quiet_libraries()
    import_quietly("apache_beam")
    origin = Workspace(workspace)
    chosen = encoder or origin.ids("encoders")[0]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(origin.local("encoders", chosen), Path(folder, "workspace", "encoders", chosen))
        print(json.dumps(_compare(Path(folder), chosen, images, rounds), indent=2))


def _compare(folder: Path, encoder: str, images: int, rounds: int) -> dict[str, Any]:
    workspace = Workspace(str(folder / "workspace"))
    drawn = _draw(folder)
    photos = folder / "photos"
    for number in range(images):
        _write(photos, number, drawn, generation=0)
    config = load_config(None, {"workspace": workspace.root, "corpus.source": str(photos)})
    whole, _ = _timed(lambda: embed_images(config, encoder))
    changes, counts = [], []
    for generation in range(1, rounds + 1):
        one_percent = images // 100
        first = generation * one_percent
        for number in range(first, first + one_percent // 2):
            _write(photos, number, drawn, generation)
        for number in range(first + one_percent // 2, first + one_percent * 3 // 4):
            _path(photos, number).unlink()
        for number in range(one_percent // 4):
            _write(photos, images * generation + number, drawn, generation)
        seconds, manifest = _timed(lambda: embed_images(config, encoder))
        changes.append(seconds)
        counts.append({"embedded": manifest.embedded, "reused": manifest.reused, "inputs": manifest.inputs})
    unchanged, _ = _timed(lambda: embed_images(config, encoder))
    shutil.rmtree(photos)
    return {
        "images": images,
        "seconds_whole": round(whole, 1),
        "seconds_of_1_percent": [round(seconds, 2) for seconds in changes],
        "share": round(statistics.median(changes) / whole, 4),
        "seconds_unchanged": round(unchanged, 2),
        "changes": counts,
    }


def _timed(task: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = task()
    return time.perf_counter() - start, result


def _draw(folder: Path) -> list[bytes]:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(DISTINCT):
        noise = Image.fromarray(generator.integers(0, 256, (480, 640, 3), np.uint8))
        path = folder / "drawn.jpg"
        noise.filter(ImageFilter.GaussianBlur(3)).save(path, quality=90)
        found.append(path.read_bytes())
    return found


def _path(photos: Path, number: int) -> Path:
    return photos / f"{number // 1000:05d}" / f"{number:08d}.jpg"


def _write(photos: Path, number: int, drawn: list[bytes], generation: int) -> None:
    path = _path(photos, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = f"{number} {generation}".encode()
    marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    data = drawn[number % DISTINCT]
    path.write_bytes(data[:2] + marker + data[2:])


if __name__ == "__main__":
    main()
