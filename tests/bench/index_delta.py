"""Compares incremental builds of an index after changes of 1 percent with a full build, in time and recall.

    python -m tests.bench.index_delta --workspace bench --captions captions.json --images photos/ --count 1000000

The workspace contains a trained encoder and an embedding run of real photos, from which the corpus is grown. Each delta
removes a random half percent of the items and adds as many; its build reuses the quantizer of the first build. Finally,
the corpus is indexed from scratch with the same settings, and the recall of both is measured on the same captions.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from indexer.corpus.corpus_scan import scan_corpus
from indexer.corpus.queries import choose_texts, embed_queries
from indexer.corpus.shards import open_corpus
from indexer.encoding.local_run import encode_corpus
from indexer.encoding.recall import measure_recall
from indexer.encoding.reuse import QUANTIZER
from indexer.quantization.quantizer import Quantizer
from indexer.tuning.parameters import IndexParameters
from indexer.tuning.quantizer_trainer import GroundTruth
from searchforge.artifacts.encoder import TEXT_TFLITE
from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config
from tests.bench.grown_run import write_like
from tests.bench.grown_set import grow

CHANGED = 0.005
"""Fraction of the corpus that each delta removes, and adds."""

TUNED = {"code_bytes": 64, "recall_at_10": 0.9}


@click.command()
@click.option("--workspace", required=True, help="Workspace with an encoder and an embedding run of photos.")
@click.option("--photos", required=True, help="Id of that run.")
@click.option("--captions", required=True)
@click.option("--images", required=True)
@click.option("--count", default=1_000_000, show_default=True)
@click.option("--deltas", default=20, show_default=True)
def main(workspace: str, photos: str, captions: str, images: str, count: int, deltas: int) -> None:
    data = {"data.captions": captions, "data.images": images, "workspace": workspace}
    store = Workspace(workspace)
    base = Manifest.model_validate(store.marker("embeddings", photos))
    vectors = np.stack([record.embedding for record in read_shards(store, base)])
    id = f"grown-{count}"
    write_like(store, base, id, grow(vectors, count), count)
    settings = {f"index.{name}": value for name, value in TUNED.items()}
    config = load_config(None, data)
    full = _build_full(data, id, settings)
    full_seconds = _seconds(full)
    manifest = Manifest.model_validate(store.marker("embeddings", id))
    generator = np.random.default_rng(0)
    each = int(CHANGED * count)
    seconds, drifts = [], []
    for delta in range(1, deltas + 1):
        fresh_vectors, first = _new_vectors(vectors, each, delta), count + delta * each
        added = write_like(store, base, f"{id}-added-{delta}", fresh_vectors, each, first)
        manifest = _changed(store, manifest, added, f"{id}-delta-{delta}", each, generator)
        built = _build(data, manifest.id, {**settings, "index.reuse_from": full["id"]})
        seconds.append(_seconds(built))
        drifts.append(built["training"]["drift"]["drift"])
        click.echo(f"delta {delta}: {seconds[-1]:.2f} s, drift {drifts[-1]:.4f}", err=True)
    recalls = {"deltas": _recall(config, store, manifest, built)}
    chosen = {name: full["parameters"][name] for name in ("code_bytes", "partitions", "partitions_searched")}
    fixed = {**chosen, "recall_at_10": "null", "max_latency_ms": "null"}
    fresh = _build_full(data, manifest.id, {f"index.{name}": value for name, value in fixed.items()})
    recalls["fresh"] = _recall(config, store, manifest, fresh)
    result = {
        "items": count,
        "whole_build_s": full_seconds,
        "whole_build_steps_s": full["seconds"],
        "delta_s": {"median": float(np.median(seconds)), "max": max(seconds), "last_steps": built["seconds"]},
        "delta_share_of_whole": float(np.median(seconds)) / full_seconds,
        "drift": {"first": drifts[0], "last": drifts[-1]},
        "recall_at_10": recalls,
    }
    click.echo(json.dumps(result, indent=2))


def _build_full(data: dict[str, str], embeddings: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Builds the index from scratch."""
    shutil.rmtree(Workspace(data["workspace"]).cache("parts"))
    return _build(data, embeddings, {**settings, "index.reuse_from": "none"})


def _build(data: dict[str, str], embeddings: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Builds the index in a child process, replacing any existing build."""
    store = Workspace(data["workspace"])
    for id in store.ids("searchers"):
        if store.marker("searchers", id)["embeddings"] == embeddings:
            shutil.rmtree(store.local("searchers", id))
    options = [f"--set={key}={value}" for key, value in {**data, **settings}.items()]
    command = [sys.executable, "-m", "indexer", "--embeddings", embeddings, *options, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _seconds(build: dict[str, Any]) -> float:
    """Returns the duration of a build without embedding captions, which are cached between builds."""
    return float(build["seconds"]["total"] - build["seconds"].get("embed_queries", 0))


def _new_vectors(vectors: npt.NDArray[np.float32], count: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yields grown vectors, without the original photos."""
    skipped = 0
    for block in grow(vectors, len(vectors) + count, seed):
        rows = block[max(0, len(vectors) - skipped) :]
        skipped += len(block)
        if len(rows):
            yield rows


def _changed(
    store: Workspace, before: Manifest, added: Manifest, id: str, gone: int, generator: np.random.Generator
) -> Manifest:
    """Commits `before` with `gone` more dead records and the shards of `added`."""
    shards = [shard.model_copy(update={"run": shard.run or before.id}) for shard in before.shards]
    dead = generator.choice(sum(shard.live for shard in shards), gone, replace=False)
    ends = np.cumsum([shard.live for shard in shards])
    owner = np.searchsorted(ends, dead, "right")
    for index in np.unique(owner):
        shard = shards[index]
        live = np.setdiff1d(np.arange(shard.count), shard.dead)
        rows = live[dead[owner == index] - (ends[index] - shard.live)]
        shards[index] = shard.model_copy(update={"dead": tuple(sorted([*shard.dead, *rows.tolist()]))})
    shards += [shard.model_copy(update={"run": added.id}) for shard in added.shards]
    records = sum(shard.live for shard in shards)
    counts = {"inputs": records, "embedded": added.embedded, "reused": records - added.embedded}
    manifest = before.model_copy(update={"id": id, "base": before.id, "shards": tuple(shards), **counts})
    if not store.committed("embeddings", id):
        with store.create("embeddings", id) as staging:
            staging.commit(manifest.model_dump())
    return manifest


def _recall(config: Config, store: Workspace, manifest: Manifest, build: dict[str, Any]) -> dict[str, object]:
    folder = store.local("searchers", build["id"])
    quantizer = Quantizer.from_bytes((folder / QUANTIZER).read_bytes(), QUANTIZER)
    texts = choose_texts(config)
    assert texts
    encoder = store.local("encoders", manifest.encoder) / TEXT_TFLITE
    queries = embed_queries(encoder, texts, store.cache("queries")).verification
    threads = len(os.sched_getaffinity(0))
    shards = open_corpus(store, manifest)
    neighbors = scan_corpus(shards, manifest.dim, 1, 0, queries, 20, threads).neighbors
    with tempfile.TemporaryDirectory() as scratch:
        merged = encode_corpus(store, manifest, shards, quantizer, config.index, threads, Path(scratch) / "metadata")
        return measure_recall(
            quantizer, merged, IndexParameters(**build["parameters"]), GroundTruth(queries, neighbors)
        )


if __name__ == "__main__":
    main()
