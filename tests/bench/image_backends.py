"""Compares backends for the image encoder on a CPU: throughput, and agreement with the SavedModel; prints JSON.

python -m tests.bench.image_backends --images FOLDER --workspace W [--encoder ID] [--count 512] [--rounds 3]

    tensorflow    the SavedModel, in batches
    litert        the bundle's image_encoder.tflite (float16 weights, computed in float32), one interpreter per thread
    dynamic_int8  8-bit weights, activations quantized at run time
    int8          8-bit weights and activations, calibrated on other photos
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import tensorflow as tf

from beam_jobs.embedding.models import LiteRTImageModel, Model, TensorFlowModel
from searchforge.artifacts.encoder import IMAGE_SAVED_MODEL, IMAGE_TFLITE, EncoderInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.console.options import quiet_libraries
from searchforge.preprocessing import Preprocessing

BATCHES = (1, 16, 64)
CALIBRATION = 100


@click.command()
@click.option("--images", required=True, help="Folder of photos.")
@click.option("--workspace", required=True, help="Workspace with a trained encoder.")
@click.option("--encoder", help="Id; default: the workspace's first encoder.")
@click.option("--count", type=int, default=512, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
def main(images: str, workspace: str, encoder: str | None, count: int, rounds: int) -> None:
    quiet_libraries()
    origin = Workspace(workspace)
    info = EncoderInfo.model_validate(origin.marker("encoders", encoder or origin.ids("encoders")[0]))
    folder, preprocessing = origin.local("encoders", info.id), Preprocessing.parse(info.preprocessing)
    paths = sorted(Path(images).iterdir())[: count + CALIBRATION]
    pixels = [preprocessing.pixels(path.read_bytes(), 10**8) for path in paths]
    calibration, pixels = pixels[:CALIBRATION], pixels[CALIBRATION:]
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        models: dict[str, tuple[Model, int, int]] = {}
        for batch in BATCHES:
            model = TensorFlowModel(folder / IMAGE_SAVED_MODEL, "images", batch)
            models[f"tensorflow_{batch}"] = (model, batch, 1)
        models["litert"] = (LiteRTImageModel(folder / IMAGE_TFLITE, preprocessing), 1, cores)
        for name in ("dynamic_int8", "int8"):
            path = Path(scratch, name)
            path.write_bytes(_quantized(folder / IMAGE_SAVED_MODEL, preprocessing, calibration, full=name == "int8"))
            models[name] = (_Uint8Model(path, preprocessing), 1, cores)
        rates: dict[str, list[float]] = {name: [] for name in models}
        embedded: dict[str, Any] = {}
        for _ in range(rounds):
            for name, (model, batch, threads) in models.items():
                start = time.perf_counter()
                embedded[name] = _embed(model, pixels, batch, threads)
                rates[name].append(len(pixels) / (time.perf_counter() - start))
    exact = embedded[f"tensorflow_{BATCHES[-1]}"]
    report = {}
    for name, values in rates.items():
        cosines = (embedded[name] * exact).sum(1)
        report[name] = {
            "images_per_second": round(statistics.median(values), 1),
            "least_cosine": round(float(cosines.min()), 5),
            "mean_cosine": round(float(cosines.mean()), 5),
        }
    print(json.dumps({"images": len(pixels), "cores": cores, "encoder": info.image_tower, **report}, indent=2))


class _Uint8Model(LiteRTImageModel):
    """A converted SavedModel, which scales its inputs itself."""

    def __call__(self, inputs: Any) -> Any:
        interpreter = self._new_interpreter() if self._idle.empty() else self._idle.get()
        input_index = interpreter.get_input_details()[0]["index"]
        output_index = interpreter.get_output_details()[0]["index"]
        embeddings = []
        for image in inputs:
            interpreter.set_tensor(input_index, image[None])
            interpreter.invoke()
            embeddings.append(interpreter.get_tensor(output_index)[0])
        self._idle.put(interpreter)
        return np.stack(embeddings)


def _embed(model: Model, pixels: list[Any], batch: int, threads: int) -> Any:
    batches = [pixels[first : first + batch] for first in range(0, len(pixels), batch)]
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(model, batches)))


def _quantized(path: Path, preprocessing: Preprocessing, calibration: list[Any], full: bool) -> bytes:
    loaded = tf.saved_model.load(str(path))  # owns the variables
    signature = loaded.signatures["serving_default"]
    spec = tf.TensorSpec([1, preprocessing.height, preprocessing.width, 3], tf.uint8, "images")
    serve = tf.function(lambda images: signature(images=images)["embedding"], input_signature=[spec])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], loaded)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if full:

        def examples() -> Iterator[list[Any]]:
            yield from ([image[None]] for image in calibration)

        converter.representative_dataset = examples
    model: bytes = converter.convert()
    return model


if __name__ == "__main__":
    main()
