"""Compares the throughput of the embedding job with a bare loop on the same model, decoder and cores; prints JSON.

python -m tests.bench.embedding --images FOLDER --workspace W [--encoder ID] [--count 4000] [--rounds 3]

    beam      `embed_images` on the DirectRunner: list, plan, read, decode, resize, embed, write, commit
    bare      read, decode, resize and embed in the same number of threads, without Beam or writing
    one, two  `embed_images` with one and with two single-core worker processes

Figures are medians of alternating rounds.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from beam_jobs.embed import EmbedMethod
from beam_jobs.embed_images import embed_images
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config
from searchforge.console.options import quiet_libraries
from searchforge.native_output import import_quietly
from searchforge.preprocessing import Preprocessing


@click.command()
@click.option("--images", required=True, help="Folder of photos.")
@click.option("--workspace", required=True, help="Workspace with a trained encoder.")
@click.option("--encoder", help="Id; default: the workspace's first encoder.")
@click.option("--count", type=int, default=4000, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--workers/--no-workers", default=True, help="Also measure worker processes.")
def main(images: str, workspace: str, encoder: str | None, count: int, rounds: int, workers: bool) -> None:
    quiet_libraries()
    import_quietly("apache_beam")
    origin = Workspace(workspace)
    chosen = encoder or origin.ids("encoders")[0]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(origin.local("encoders", chosen), Path(folder, "encoders", chosen))
        photos = sorted(path.resolve() for path in Path(images).iterdir())[:count]
        listed = Path(folder, "photos.txt")
        listed.write_text("".join(f"{path}\n" for path in photos))
        cores = len(os.sched_getaffinity(0))
        processes = "--direct_running_mode=multi_processing"
        tasks: dict[str, Callable[[], None]] = {
            "beam": lambda: _beam(folder, chosen, listed),
            "bare": lambda: _bare(folder, chosen, photos, cores),
        }
        if workers:
            for name, number in (("one", 1), ("two", 2)):
                options = (processes, f"--direct_num_workers={number}")
                tasks[name] = lambda options=options: _beam(folder, chosen, listed, options)  # type: ignore[misc]
        rates: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(rounds):
            for name, task in tasks.items():
                start = time.perf_counter()
                task()
                rates[name].append(len(photos) / (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in rates.items()}
    report = {
        "images": len(photos),
        "cores": cores,
        "images_per_second": {name: round(value, 1) for name, value in median.items()},
        "beam_of_bare": round(statistics.median(b / a for a, b in zip(rates["bare"], rates["beam"], strict=True)), 3),
    }
    if workers:
        report["two_of_one"] = round(median["two"] / median["one"], 2)
    print(json.dumps(report, indent=2))


def _config(folder: str, listed: Path, options: tuple[str, ...] = ()) -> Config:
    values = {"workspace": folder, "corpus.source": str(listed), "embed.beam_options": options}
    return load_config(None, {**values, **({"embed.threads": 1} if options else {})})


def _beam(folder: str, encoder: str, listed: Path, options: tuple[str, ...] = ()) -> None:
    shutil.rmtree(Path(folder, "embeddings"), ignore_errors=True)
    embed_images(_config(folder, listed, options), encoder)


def _bare(folder: str, encoder: str, photos: list[Path], cores: int) -> None:
    config = _config(folder, photos[0])
    options = EmbedMethod(config, encoder, "images").options("")
    model, preprocessing = options.load_model(), Preprocessing.parse(options.preprocessing)

    def embed_one(path: Path) -> object:
        return model([preprocessing.pixels(path.read_bytes(), config.corpus.max_pixels)])

    with ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(embed_one, photos):
            pass


if __name__ == "__main__":
    main()
