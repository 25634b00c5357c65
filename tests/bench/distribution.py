"""Compares two Ray workers with one, for feature extraction and head training; prints JSON.

python -m tests.bench.distribution --captions C.json --images FOLDER [--limit IMAGES] [--rounds 3]

The figures are medians of alternating measurements in one run. Every worker has one thread, so that two workers use
twice the cores. Starting Ray is excluded: rates of the towers are counted from the first finished chunk on, and rates
of the heads exclude the first epoch.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from searchforge.config import Config, load_config
from searchforge.console.options import quiet_libraries
from searchforge.native_output import import_quietly

CHUNKS = 16
"""Number of chunks in each measured pass over the inputs."""


@click.command()
@click.option("--captions", required=True, multiple=True, help="Caption files.")
@click.option("--images", required=True, help="Folder of the images.")
@click.option("--limit", type=int, default=1000, show_default=True, help="Number of images per round.")
@click.option("--rounds", type=int, default=3, show_default=True)
def main(captions: tuple[str, ...], images: str, limit: int, rounds: int) -> None:
    quiet_libraries()
    import_quietly("tensorflow")
    config = load_config(
        None,
        {"workspace": tempfile.mkdtemp(), "data.captions": list(captions), "data.images": images, "train.epochs": 4},
    )
    print(json.dumps(_compare(config, limit, rounds), indent=2))


def _compare(config: Config, limit: int, rounds: int) -> dict[str, Any]:
    from trainer import train
    from trainer.data import load_data
    from trainer.features.sets import caption_key, extract_all
    from trainer.fit.checkpoints import CheckpointStore
    from trainer.fit.head_training import HeadTask
    from trainer.fit.loop import fit
    from trainer.ray_cluster import Allocation, ray_cluster
    from trainer.towers import load_image_tower, load_text_tower

    data = load_data(config)
    data = dataclasses.replace(data, train=data.train[:limit], heldout=[])
    inputs = {
        "image": {image.content_hash: image.uri for image in data.train},
        "text": {caption_key(text): text for image in data.train for text in image.captions},
    }
    specs = train.tower_specs(config.train, list(inputs["text"].values()))
    measured: dict[str, dict[int, list[float]]] = {}

    def record(name: str, workers: int, value: float) -> None:
        measured.setdefault(name, {1: [], 2: []})[workers].append(value)

    with ray_cluster(config.train.model_copy(update={"workers": 2})), tempfile.TemporaryDirectory() as folder:
        towers = load_image_tower(specs[0]), load_text_tower(specs[1])
        features = extract_all(Allocation(config.train.workers), data, towers, specs, Path(folder), config.train.views)
        training_set = features.training_set(data)
        for number in range(rounds):
            for workers in (1, 2):
                for spec in specs:
                    record(f"{spec.modality}s_per_second", workers, _tower_rate(spec, inputs[spec.modality], workers))
                settings = config.train.model_copy(update={"workers": workers})
                store = CheckpointStore(folder)
                trained = fit(HeadTask(settings, training_set), store, f"{number}-{workers}", Allocation(workers))
                later = [epoch["seconds"] for epoch in trained.history[1:]]
                record("head_epochs_per_second", workers, 1.0 / statistics.median(later))
    return {
        "images": len(data.train),
        "rounds": rounds,
        **{
            name: {
                "one_worker": round((one := statistics.median(values[1])), 2),
                "two_workers": round((two := statistics.median(values[2])), 2),
                "ratio": round(two / one, 2),
            }
            for name, values in measured.items()
        },
    }


def _tower_rate(spec: Any, inputs: dict[str, str], workers: int) -> float:
    """Returns the inputs per second after every worker has finished its first chunk."""
    from trainer.features.cache import FeatureCache, RowLocations
    from trainer.features.extraction import CHUNK, ExtractionRequest, extract
    from trainer.ray_cluster import Allocation

    finished: list[tuple[float, int]] = []

    class Timed(FeatureCache):
        def write(self, name: str, keys: Sequence[str], values: Any) -> RowLocations:
            finished.append((time.monotonic(), len(keys)))
            return super().write(name, keys, values)

    chunk = {**CHUNK, spec.modality: -(-len(inputs) // CHUNKS)}
    with tempfile.TemporaryDirectory() as folder:
        extract([ExtractionRequest(spec, "rate", inputs)], Timed(Path(folder)), Allocation(workers), chunk=chunk)
    counted = sum(count for _, count in finished[workers:])
    return counted / (finished[-1][0] - finished[workers - 1][0])


if __name__ == "__main__":
    main()
