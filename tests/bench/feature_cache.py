"""Compares the 2022 recipe on cached features with running the frozen towers in every step; prints JSON.

python -m tests.bench.feature_cache --captions C.json --images FOLDER [--limit IMAGES]

Both train on the same images from the same seed. `filling` is the one-time cost of extracting the features of all
images and captions. Every figure includes starting Ray.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from searchforge.config import Config, load_config
from searchforge.console.options import quiet_libraries
from searchforge.native_output import import_quietly
from trainer.features.batches import TrainingSet, draw_batch
from trainer.fit.head_training import HeadTask


@dataclasses.dataclass(frozen=True)
class RecomputingTask(HeadTask):
    """A head training task that runs the towers on every batch.

    Attributes:
      specs: Specifications of the image and the text tower.
      inputs: Paths of the images, and texts, in the order of the training set's rows.
    """

    specs: tuple[Any, ...] = ()
    inputs: tuple[list[str], ...] = ()

    def batch(self, rows: Any, random: np.random.Generator, part: slice) -> tuple[Any, ...]:
        numbers = dataclasses.replace(
            self.data, images=np.arange(len(self.inputs[0]))[np.newaxis], texts=np.arange(len(self.inputs[1]))
        )
        images, texts, ids = draw_batch(self.config, numbers, rows, random, part)
        features = [
            _tower(spec)([inputs[i] for i in indices.ravel()])["plain"]
            for spec, inputs, indices in zip(self.specs, self.inputs, (images, texts), strict=True)
        ]
        return features[0].reshape(*images.shape, -1), features[1].reshape(*texts.shape, -1), ids


@functools.cache
def _tower(spec: Any) -> Any:
    from trainer.features.extraction import TowerRunner

    return TowerRunner(spec)


@click.command()
@click.option("--captions", required=True, multiple=True, help="Caption files.")
@click.option("--images", required=True, help="Folder of the images.")
@click.option("--limit", type=int, help="Number of images to train on.")
@click.option("--epochs", type=int, default=10, show_default=True)
def main(captions: tuple[str, ...], images: str, limit: int | None, epochs: int) -> None:
    quiet_libraries()
    import_quietly("tensorflow")
    data = {"workspace": tempfile.mkdtemp(), "data.captions": list(captions), "data.images": images}
    towers = {"train.image_tower": "pypi:efficientnet-lite0", "train.text_tower": "pypi:minilm-l6"}
    recipe = {"train.preset": "recipe2022", "train.epochs": epochs, **towers}
    print(json.dumps(_compare(load_config(None, {**data, **recipe}), limit), indent=2))


def _compare(config: Config, limit: int | None) -> dict[str, Any]:
    from trainer import train
    from trainer.data import load_data
    from trainer.features.sets import caption_key, extract_all
    from trainer.fit.checkpoints import CheckpointStore
    from trainer.fit.loop import fit
    from trainer.ray_cluster import allocate_in_cluster, ray_cluster
    from trainer.towers import load_image_tower, load_text_tower

    settings, data = config.train, load_data(config)
    data = dataclasses.replace(data, train=data.train[:limit], heldout=[])
    paths = {image.content_hash: image.uri for image in data.train}
    texts = {caption_key(text): text for image in data.train for text in image.captions}
    specs = train.tower_specs(settings, list(texts.values()))
    towers = load_image_tower(specs[0]), load_text_tower(specs[1])
    seconds: dict[str, float] = {}
    with ray_cluster(settings), tempfile.TemporaryDirectory() as folder:
        allocation, store = allocate_in_cluster(settings.workers), CheckpointStore(folder)

        def features() -> TrainingSet:
            found = extract_all(allocation, data, towers, specs, Path(folder, "features"), settings.views)
            return found.training_set(data)

        start = time.monotonic()
        training_set = features()
        seconds["filling"] = time.monotonic() - start

        start = time.monotonic()
        cached = fit(HeadTask(settings, features()), store, "cached", allocation)
        seconds["cached"] = time.monotonic() - start

        start = time.monotonic()
        inputs = (list(paths.values()), list(texts.values()))  # in the order of the training set's rows
        task = RecomputingTask(settings, training_set, specs=specs, inputs=inputs)
        recomputed = fit(task, store, "recomputed", allocation)
        seconds["recomputed"] = time.monotonic() - start
    return {
        "images": len(data.train),
        "captions": len(texts),
        "epochs": settings.epochs,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "times_faster": round(seconds["recomputed"] / seconds["cached"], 1),
        "times_faster_with_filling": round(seconds["recomputed"] / (seconds["cached"] + seconds["filling"]), 1),
        "loss": {"cached": cached.history[-1]["loss"], "recomputed": recomputed.history[-1]["loss"]},
        "largest_difference_of_losses": max(
            abs(a["loss"] - b["loss"]) for a, b in zip(cached.history, recomputed.history, strict=True)
        ),
    }


if __name__ == "__main__":
    from tests.bench import feature_cache  # workers import the task by this name

    feature_cache.main()
