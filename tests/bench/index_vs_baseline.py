"""Compares searchforge's index with Model Maker's: build time, memory, size, recall and latency; prints JSON.

    python -m tests.bench.index_vs_baseline --workspace bench --photos RUN --captions captions.json --images photos/ \
        --count 1000000

The workspace contains a trained encoder and an embedding run of real photos, from which the corpus is grown. Queries
are held-out captions that were used neither for the query map nor for tuning. All searches go through the Task Library
on one thread, alternating between the indexes.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from indexer.corpus.corpus_scan import ExactNeighbors, exact_search
from indexer.corpus.queries import choose_texts, embed_queries
from indexer.encoding.reuse import QUANTIZER
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_map import inverse_transpose
from searchforge.artifacts.encoder import TEXT_TFLITE
from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.searcher import INDEX, TEXT_SEARCHER
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from searchforge.processes import isolated
from serving_check.measurement.search import Searcher
from tests import lookup_encoder
from tests.bench import scann_baseline
from tests.bench.grown_run import write_like
from tests.bench.grown_set import grow

ROUNDS, K = 3, 10

BASELINES: dict[str, dict[str, Any]] = {
    "recipe": {"dims_per_block": 1, "lut_type": "int8", "searched": 4},
    "Model Maker, 64 bytes, 3 percent searched": {"dims_per_block": 2, "lut_type": "float", "searched": 0.03},
    "Model Maker, 128 bytes, 3 percent searched": {"dims_per_block": 1, "lut_type": "float", "searched": 0.03},
}
"""ScaNN on all vectors at once with sqrt(N) partitions; `searched` below 1 is a fraction of them."""

OURS: dict[str, dict[str, Any]] = {
    "ours, 64 bytes": {"code_bytes": 64, "recall_at_10": "null"},
    "ours, 96 bytes": {"code_bytes": 96, "recall_at_10": "null"},
    "ours, recall 0.90": {"recall_at_10": 0.90},
    "ours, recall 0.95": {"recall_at_10": 0.95},
}


@click.command()
@click.option("--workspace", required=True)
@click.option("--photos", required=True, help="Id of the photos' embedding run.")
@click.option("--captions", required=True)
@click.option("--images", required=True)
@click.option("--count", default=1_000_000, show_default=True)
def main(workspace: str, photos: str, captions: str, images: str, count: int) -> None:
    data = {"workspace": workspace, "data.captions": captions, "data.images": images}
    store, config = Workspace(workspace), load_config(None, data)
    base = Manifest.model_validate(store.marker("embeddings", photos))
    vectors = np.stack([record.embedding for record in read_shards(store, base)])
    corpus = np.concatenate(list(grow(vectors, count)))
    id = f"grown-{count}"
    write_like(store, base, id, iter([corpus]), count)
    texts = choose_texts(config)
    assert texts
    encoder = store.local("encoders", base.encoder) / TEXT_TFLITE
    queries = embed_queries(encoder, texts, store.cache("queries")).verification
    neighbors = exact_search(queries, corpus, 2 * K)
    with tempfile.TemporaryDirectory(prefix="searchforge-bench-") as folder:
        scratch = Path(folder)
        np.save(scratch / "vectors.npy", corpus)
        del corpus
        results: dict[str, dict[str, Any]] = {}
        indexes: dict[str, tuple[Path, npt.NDArray[np.float32]]] = {}
        for name, settings in OURS.items():
            report, index, query_map = _build_searchforge(data, id, settings)
            indexes[name] = (Path(shutil.copy(index, scratch / f"{len(indexes)}.ldb")), queries @ query_map.T)
            results[name] = report
        for name, settings in BASELINES.items():
            path = scratch / f"{len(indexes)}.ldb"
            results[name] = _build_baseline(scratch / "vectors.npy", count, settings, path)
            indexes[name] = (path, queries)
        for name, measured in _search(indexes, neighbors, scratch).items():
            results[name] |= measured
    newest = max(store.ids("searchers"), key=lambda id: store.marker("searchers", id)["created"])
    with Searcher(store.local("searchers", newest) / TEXT_SEARCHER) as searcher:
        times = [searcher.timed_search(text, K)[1] for text in texts.verification[:300]]
    click.echo(
        json.dumps(
            {
                "items": count,
                "queries": len(queries),
                "results": results,
                "text_encoding_included_ms": {
                    "searcher": newest,
                    "p50": round(float(np.percentile(times, 50)), 2),
                    "p99": round(float(np.percentile(times, 99)), 2),
                },
            },
            indent=2,
        )
    )


_INDEXER_WITH_PEAK = """
import runpy, sys
from tests.bench.peak_memory import peak_memory
sys.argv[0] = "indexer"
try:
    runpy.run_module("indexer", run_name="__main__")
finally:
    print(peak_memory() / 1e6, file=sys.stderr)
"""
"""Program that runs the indexer and prints its peak memory to stderr."""


def _build_searchforge(
    data: dict[str, str], embeddings: str, settings: dict[str, Any]
) -> tuple[dict[str, Any], Path, npt.NDArray[np.float32]]:
    """Builds from scratch in a child process; returns figures, the index, and the matrix that maps queries."""
    store = Workspace(data["workspace"])
    shutil.rmtree(store.cache("parts"))
    for id in store.ids("searchers"):
        if store.marker("searchers", id)["embeddings"] == embeddings:
            shutil.rmtree(store.local("searchers", id))
    keys = {**data, **{f"index.{name}": value for name, value in settings.items()}, "index.reuse_from": "none"}
    options = [f"--set={key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-c", _INDEXER_WITH_PEAK, "--embeddings", embeddings, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    build = json.loads(done.stdout)
    folder = store.local("searchers", build["id"])
    quantizer = Quantizer.from_bytes((folder / QUANTIZER).read_bytes(), QUANTIZER)
    captions = build["seconds"].pop("embed_queries")  # cached between builds
    build["seconds"]["total"] -= captions
    figures = {
        "parameters": build["parameters"],
        "seconds": build["seconds"],
        "peak_mb": float(done.stderr.splitlines()[-1]),
        "bytes_per_image": build["bytes_per_image"],
        "index_mb": build["sizes"]["index_file"] / 1e6,
        "promised": build["training"]["tuning"]["recall_at_10"],
    }
    return figures, folder / INDEX, inverse_transpose(quantizer.transform)


def _build_baseline(vectors: Path, count: int, settings: dict[str, Any], index: Path) -> dict[str, Any]:
    partitions = math.isqrt(count)
    searched = settings["searched"] if settings["searched"] >= 1 else math.ceil(settings["searched"] * partitions)
    request = {**settings, "searched": searched, "partitions": partitions}
    return isolated.call(
        scann_baseline.MODULE, {"do": "build", "vectors": str(vectors), "index": str(index), **request}
    )


def _search(
    indexes: dict[str, tuple[Path, npt.NDArray[np.float32]]], neighbors: ExactNeighbors, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Searches every index with all queries, in alternating rounds."""
    count = len(neighbors.items)
    per_round = count // ROUNDS
    ids: dict[str, list[npt.NDArray[np.str_]]] = {name: [] for name in indexes}
    milliseconds: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in indexes}
    for number, (_, queries) in enumerate(indexes.values()):
        np.save(scratch / "queries.npy", np.ascontiguousarray(queries, np.float32))
        encoder = str(scratch / f"{number}.tflite")
        isolated.call(
            lookup_encoder.MODULE, {"do": "write", "vectors": str(scratch / "queries.npy"), "encoder": encoder}
        )
    for turn in range(ROUNDS):
        for number, (name, (index, _)) in enumerate(indexes.items()):
            output = scratch / "found.npz"
            request = {"index": str(index), "first": turn * per_round, "count": per_round, "k": K}
            paths = {"encoder": str(scratch / f"{number}.tflite"), "output": str(output)}
            isolated.call(scann_baseline.MODULE, {"do": "search", **request, **paths})
            with np.load(output, allow_pickle=False) as found:
                ids[name].append(found["ids"])
                milliseconds[name].append(found["milliseconds"])
    measured = {}
    searched = ExactNeighbors(
        *(part[: ROUNDS * per_round] for part in (neighbors.items, neighbors.scores, neighbors.vectors))
    )
    for name in indexes:
        names = np.concatenate(ids[name])
        rows = np.array([[int(id.removesuffix(".jpg")) if id else -1 for id in found] for found in names])
        times = np.concatenate(milliseconds[name])
        measured[name] = {
            "recall_at_1": round(float(searched.recalls(rows, 1).mean()), 4),
            "recall_at_10": round(float(searched.recalls(rows, K).mean()), 4),
            "search_ms": {"p50": round(float(np.median(times)), 3), "p99": round(float(np.percentile(times, 99)), 3)},
        }
    return measured


if __name__ == "__main__":
    main()
