"""Compares decoding large JPEGs at reduced and at full size; prints medians as JSON.

python -m tests.bench.large_photos --images FOLDER --workspace W [--encoder ID] [--count 40]

The photos are enlarged to 2560 x 1920. The cosines compare the embeddings of both variants.
"""

from __future__ import annotations

import io
import json
import statistics
import time
from pathlib import Path

import click
from PIL import Image

from beam_jobs.embedding.models import LiteRTImageModel
from searchforge.artifacts.encoder import IMAGE_TFLITE, EncoderInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.image_decoding import decode
from searchforge.preprocessing import Preprocessing

SIZE = (2560, 1920)
LIMIT = SIZE[0] * SIZE[1]


@click.command()
@click.option("--images", required=True, help="Folder of photos.")
@click.option("--workspace", required=True, help="Workspace with a trained encoder.")
@click.option("--encoder", help="Id; default: the workspace's first encoder.")
@click.option("--count", type=int, default=40, show_default=True)
def main(images: str, workspace: str, encoder: str | None, count: int) -> None:
    origin = Workspace(workspace)
    info = EncoderInfo.model_validate(origin.marker("encoders", encoder or origin.ids("encoders")[0]))
    preprocessing = Preprocessing.parse(info.preprocessing)
    model = LiteRTImageModel(origin.local("encoders", info.id) / IMAGE_TFLITE, preprocessing)
    milliseconds: dict[str, list[float]] = {"whole": [], "needed": []}
    cosines = []
    for path in sorted(Path(images).iterdir())[:count]:
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
        data = buffer.getvalue()
        pixels = []
        for name, task in (
            ("whole", lambda data=data: preprocessing.resize(decode(data, LIMIT))),
            ("needed", lambda data=data: preprocessing.pixels(data, LIMIT)),
        ):
            start = time.perf_counter()
            pixels.append(task())
            milliseconds[name].append((time.perf_counter() - start) * 1e3)
        whole, needed = model(pixels)
        cosines.append(float(whole @ needed))
    median = {name: statistics.median(values) for name, values in milliseconds.items()}
    report = {
        "photos": len(cosines),
        "ms": {name: round(value, 1) for name, value in median.items()},
        "times_faster": round(median["whole"] / median["needed"], 1),
        "cosine": {"least": round(min(cosines), 5), "mean": round(statistics.mean(cosines), 5)},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
