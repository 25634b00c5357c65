"""Measures the export and the import of embedding runs of two sizes, each in its own process; prints JSON.

python -m tests.bench.exchange [--small 100000] [--large 1000000] [--dim 128]

Records have random vectors and metadata of four keys. `peak_bytes` includes 100 to 200 MB of libraries.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from beam_jobs.planning.shards import Shard, shard_count, write_records
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from searchforge.storage.local import LocalStorage
from tests.bench.peak_memory import peak_memory

STEPS = ("export parquet", "import parquet", "export npy", "import npy")


@click.command()
@click.option("--small", type=int, default=100_000, show_default=True)
@click.option("--large", type=int, default=1_000_000, show_default=True)
@click.option("--dim", type=int, default=128, show_default=True)
def main(small: int, large: int, dim: int) -> None:
    print(json.dumps({f"{count} records": _measure(count, dim) for count in (small, large)}, indent=2))


def _measure(count: int, dim: int) -> dict[str, object]:
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        _make_run(Workspace(f"{folder}/workspace"), count, dim)
        for step in STEPS:
            action, format = step.split()
            code = f"from tests.bench.exchange import {action}_run; {action}_run()"
            command = [sys.executable, "-c", code, folder, format]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            report[step] = json.loads(result.stdout)
    return report


def export_run() -> None:
    """Exports the run of the workspace in the folder that the command line names; prints figures as JSON."""
    from beam_jobs.exchange.export import export

    folder, format = sys.argv[1:]
    start = time.monotonic()
    done = export(load_config(None, {"workspace": f"{folder}/workspace"}), "run", format, Path(folder, format))  # type: ignore[arg-type]
    figures = {"seconds": round(time.monotonic() - start, 1), "bytes": done.bytes, "files": len(done.files)}
    print(json.dumps({**figures, "peak_bytes": peak_memory()}))


def import_run() -> None:
    """Imports the export of this format into a workspace that has only the encoder; prints figures as JSON."""
    from beam_jobs.exchange.import_run import import_embeddings

    folder, format = sys.argv[1:]
    workspace = Workspace(f"{folder}/{format}-workspace")
    _make_encoder(workspace, int(Workspace(f"{folder}/workspace").marker("embeddings", "run")["dim"]))
    start = time.monotonic()
    import_embeddings(load_config(None, {"workspace": workspace.root}), [Path(folder, format)], "bench")
    print(json.dumps({"seconds": round(time.monotonic() - start, 1), "peak_bytes": peak_memory()}))


def _make_encoder(workspace: Workspace, dim: int) -> None:
    info = {"id": "bench", "fingerprint": "f", "preprocessing": "decode|resize(8,8,bilinear)|scale(-1,1)", "dim": dim}
    info |= {"image_tower": "", "text_tower": "", "sequence_length": 1, "files": {}, "report": {}}
    with workspace.create("encoders", "bench") as staging:
        staging.commit(info)


def _make_run(workspace: Workspace, count: int, dim: int) -> None:
    _make_encoder(workspace, dim)
    generator = np.random.default_rng(0)
    total = shard_count(count)
    with workspace.create("embeddings", "run") as staging:
        shards = []
        for index in range(total):
            numbers = range(index, count, total)
            vectors = generator.standard_normal((len(numbers), dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            records = [_record(number, vector) for number, vector in zip(numbers, vectors, strict=True)]
            shards.append(write_records(LocalStorage(str(staging.path)), ".", Shard(index, total), records, [])[0])
        counts = {"inputs": count, "embedded": count, "reused": 0, "rejected": 0, "rejected_by_reason": {}}
        manifest = Manifest(
            id="run",
            encoder="bench",
            fingerprint="f",
            preprocessing="",
            dim=dim,
            source="bench",
            shards=tuple(shards),
            rejects=(),
            seconds=0.0,
            **counts,  # type: ignore[arg-type]
        )
        staging.commit(manifest.model_dump())


def _record(number: int, vector: np.ndarray) -> EmbeddingRecord:
    metadata = {"title": f"Photo {number}", "year": 1990 + number % 35, "rating": number % 50 / 10, "album": "summer"}
    return EmbeddingRecord(f"{number}.jpg", vector, f"/photos/{number}.jpg", f"{number:064}", metadata, f"{number}-1")


if __name__ == "__main__":
    main()
