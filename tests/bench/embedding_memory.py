"""Measures the peak memory of embedding a small and a large corpus, each in its own process; prints JSON.

python -m tests.bench.embedding_memory [--small 100000] [--large 1000000]

The corpora are TFRecords of 8 x 8 images and the encoder is tiny, so that any growth is due to the job itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from searchforge.artifacts.records import write_tfrecords
from searchforge.artifacts.workspace import Workspace
from tests.beam_jobs.photos import png
from tests.bench.peak_memory import peak_memory
from tests.tiny_bundle import write_bundle

FILES = 10


@click.command()
@click.option("--small", type=int, default=100_000, show_default=True)
@click.option("--large", type=int, default=1_000_000, show_default=True)
def main(small: int, large: int) -> None:
    report = {name: _measure(count) for name, count in (("small", small), ("large", large))}
    ratio = report["large"]["peak_bytes"] / report["small"]["peak_bytes"]
    print(json.dumps({**report, "ratio": round(ratio, 3)}, indent=2))


def _measure(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(f"{folder}/workspace")
        write_bundle(workspace)
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number in range(FILES):
            with (corpus / f"{number}.tfrecord").open("wb") as file:
                write_tfrecords(file, (_example(index) for index in range(number, count, FILES)))
        code = "from tests.bench.embedding_memory import embed; embed()"
        command = [sys.executable, "-c", code, workspace.root, str(corpus)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, float] = json.loads(result.stdout)
    return report


def _example(index: int) -> bytes:
    import tensorflow as tf  # not imported by the measured process

    # Equal contents would be embedded only once, so appended bytes make every image different.
    values = {"image/encoded": png(index % 100, (8, 8)) + str(index).encode(), "id": str(index).encode()}
    features = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in values.items()}
    data: bytes = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    return data


def embed() -> None:
    """Embeds the corpus named on the command line and prints figures as JSON."""
    from beam_jobs.embed_images import embed_images
    from searchforge.config import load_config

    workspace, corpus = sys.argv[1:]
    manifest = embed_images(load_config(None, {"workspace": workspace, "corpus.source": corpus}), "tiny")
    figures = {"items": manifest.inputs, "embedded": manifest.embedded, "seconds": manifest.seconds}
    print(json.dumps({**figures, "peak_bytes": peak_memory()}))


if __name__ == "__main__":
    main()
