"""Ablation of the `best` recipe: trains the heads with and without each step, and prints R@k as JSON.

    python -m tests.bench.recipes --captions flickr8k/captions.json --images flickr8k/images --workspace bench

All rows use the same towers. Features are cached in the workspace, so that a second run only trains heads.
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import click

from searchforge.config import Config, load_config
from searchforge.console.options import quiet_libraries
from searchforge.native_output import import_quietly

PLAIN: dict[str, Any] = {"ensemble_size": 1, "views": 1, "hubness_correction": 0.0}
TOWERS = {"image_tower": "pypi:efficientnet-lite0", "text_tower": "pypi:minilm-l6"}

ROWS: dict[str, dict[str, Any]] = {
    "recipe2022": {"preset": "recipe2022"},
    "best, one pair of heads, whole images": PLAIN,
    "+ mirror images": {**PLAIN, "views": 2},
    "+ crops": {**PLAIN, "views": 6},
    "+ four pairs of heads": {"hubness_correction": 0.0},
    "+ hubness correction (best)": {},
}
"""Training settings of each row."""


@click.command()
@click.option("--captions", required=True, multiple=True, help="Caption files.")
@click.option("--images", required=True, help="Folder of the images.")
@click.option("--workspace", required=True, help="Workspace in which features are cached.")
@click.option("--row", "chosen", multiple=True, type=click.Choice(list(ROWS)), help="Rows to run; default: all.")
@click.option("--set", "settings", multiple=True, help="Setting train.key=value for all rows.")
@click.option("--seeds", default=1, show_default=True, help="Number of runs per row, whose figures are averaged.")
def main(
    captions: tuple[str, ...],
    images: str,
    workspace: str,
    chosen: tuple[str, ...],
    settings: tuple[str, ...],
    seeds: int,
) -> None:
    quiet_libraries()
    import_quietly("tensorflow")
    common = {"workspace": workspace, "data.captions": list(captions), "data.images": images}
    given = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in settings)}
    results = {}
    for row in chosen or ROWS:
        runs = []
        for seed in range(seeds):
            own = {f"train.{key}": value for key, value in {**TOWERS, **ROWS[row], "seed": seed}.items()}
            runs.append(_measure(load_config(None, {**common, **own, **given})))
        results[row] = {key: round(sum(run[key] for run in runs) / seeds, 4) for key in runs[0]} | {"runs": runs}
        click.echo(f"{row}: {results[row]}", err=True)
    click.echo(json.dumps(results, indent=2))


def _measure(config: Config) -> dict[str, float]:
    from trainer import train
    from trainer.model.dual_encoder import DualEncoder

    # Hubness correction is applied after training, so rows that differ only in it share a training run.
    data, features, widths, weights, seconds = _trained(
        config.model_copy(update={"train": config.train.model_copy(update={"hubness_correction": 0.0})})
    )
    model = DualEncoder(config.train, *widths)
    model.load(weights)
    heads = train.ensemble_heads(config.train, model, features.training_set(data))
    retrieval = train.heldout_retrieval(heads, data, features)
    assert retrieval is not None
    return {key: retrieval[key] for key in ("r_at_1", "r_at_5", "r_at_10")} | {"seconds": seconds}


@functools.lru_cache(maxsize=1)
def _trained(config: Config) -> tuple[Any, ...]:
    """Returns data, features, feature widths, trained weights and the duration of head training in seconds."""
    from searchforge.artifacts.workspace import Workspace
    from trainer.data import load_data
    from trainer.features.sets import extract_all
    from trainer.fit.checkpoints import CheckpointStore
    from trainer.fit.head_training import train_heads
    from trainer.ray_cluster import allocate_in_cluster, ray_cluster
    from trainer.towers import load_image_tower, load_text_tower, tower_specs

    settings, workspace, data = config.train, Workspace(config.workspace), load_data(config)
    specs = tower_specs(settings, [text for image in data.images for text in image.captions])
    towers = load_image_tower(specs[0]), load_text_tower(specs[1])
    with ray_cluster(settings):
        allocation = allocate_in_cluster(settings.workers)
        features = extract_all(allocation, data, towers, specs, workspace.cache("features"), settings.views)
        start, store, run = time.monotonic(), CheckpointStore(workspace.root), f"bench-{time.time_ns()}"
        trained = train_heads(settings, features.training_set(data), store, run, allocation)
        seconds = round(time.monotonic() - start, 1)
        store.delete(f"{run}-heads")
    return data, features, (towers[0].width, towers[1].width), trained.weights, seconds


if __name__ == "__main__":
    main()
