"""Compares the latency of the image encoder and of its plain tower in TFLite on one thread; prints medians as JSON.

python -m tests.bench.image_cost --workspace W [--encoder ID] [--rounds 100]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from searchforge.artifacts.encoder import IMAGE_TFLITE, EncoderInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from searchforge.console.options import quiet_libraries
from searchforge.preprocessing import Preprocessing


@click.command()
@click.option("--workspace", required=True, help="Workspace with a trained encoder.")
@click.option("--encoder", help="Id; default: the workspace's first encoder.")
@click.option("--rounds", type=int, default=100, show_default=True)
def main(workspace: str, encoder: str | None, rounds: int) -> None:
    quiet_libraries()
    from trainer.export.encoders import ImageEncoder
    from trainer.towers import load_image_tower, tower_specs

    origin = Workspace(workspace)
    info = EncoderInfo.model_validate(origin.marker("encoders", encoder or origin.ids("encoders")[0]))
    # The 2022 recipe uses only the tower's last features.
    towers = {"train.image_tower": info.image_tower, "train.text_tower": info.text_tower}
    plain = load_config(None, {"train.preset": "recipe2022", **towers})
    spec, _ = tower_specs(plain.train, ["a text"])
    size = Preprocessing.parse(info.preprocessing)
    image = np.random.default_rng(0).uniform(-1, 1, (1, size.height, size.width, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        tower = Path(folder, "tower.tflite")
        ImageEncoder(load_image_tower(spec), lambda features: features).save_tflite(tower)
        models = {"tower": tower, "encoder": origin.local("encoders", info.id) / IMAGE_TFLITE}
        interpreters = {name: Interpreter(str(path), num_threads=1) for name, path in models.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        for interpreter in interpreters.values():
            interpreter.allocate_tensors()
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
            interpreter.invoke()
        for _ in range(rounds):
            for name, interpreter in interpreters.items():
                start = time.perf_counter()
                interpreter.invoke()
                times[name].append((time.perf_counter() - start) * 1e3)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        json.dumps(
            {
                "image_tower": info.image_tower,
                "ms": {name: round(value, 2) for name, value in median.items()},
                "encoder_of_tower": round(median["encoder"] / median["tower"], 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
