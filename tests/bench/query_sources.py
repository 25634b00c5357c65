"""Measures what each source of queries costs an index: tunes one with each, and asks all with held-out captions.

    python -m tests.bench.query_sources --workspace bench --embeddings ID --captions captions.json --images photos/

The workspace contains a trained encoder and an embedding run of photos, from which a larger corpus may be grown. The
query log is made of the captions of training images: up to four of their words, without the most common ones. Each
source tunes an index for the same recall, and one of the same size and speed. All of them are measured with the same
captions, which tune none of them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

from indexer.build import build_index
from indexer.compiled_code import offer_cache
from indexer.corpus.corpus_scan import scan_corpus
from indexer.corpus.queries import QueryTexts, choose_texts, embed_texts
from indexer.corpus.shards import open_corpus
from indexer.encoding.local_run import encode_corpus
from indexer.encoding.recall import measure_recall
from indexer.encoding.reference import ReferenceSearcher
from indexer.encoding.reuse import QUANTIZER
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_map import inverse_transpose
from indexer.tuning.parameters import IndexParameters
from indexer.tuning.quantizer_trainer import GroundTruth
from searchforge.artifacts.encoder import TEXT_TFLITE
from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.workspace import Workspace
from searchforge.captions.dataset import load_captions, split_heldout, split_queries
from searchforge.config import Config, load_config
from searchforge.console.options import quiet_libraries
from tests.bench.grown_run import write_like
from tests.bench.grown_set import grow

COMMON_WORDS = 60
"""Number of the most common words of captions that nobody searches for, such as "a", "in" and "is"."""

LOGGED_WORDS = 4

SETTINGS: dict[str, dict[str, Any]] = {
    "tuned": {"recall_at_10": 0.95},
    "fixed": {"recall_at_10": None, "code_bytes": 32, "partitions": 256, "partitions_searched": 16},
}
"""Settings of the `index` section: to reach a recall, and to compare recall at equal size and speed."""


@click.command()
@click.option("--workspace", required=True, help="Workspace with an encoder and an embedding run of photos.")
@click.option("--embeddings", required=True, help="Id of that run.")
@click.option("--captions", required=True)
@click.option("--images", required=True)
@click.option("--count", type=int, help="Number of items to grow the corpus to; default: the photos themselves.")
def main(workspace: str, embeddings: str, captions: str, images: str, count: int | None) -> None:
    quiet_libraries()
    offer_cache(workspace)
    store = Workspace(workspace)
    manifest = Manifest.model_validate(store.marker("embeddings", embeddings))
    if count:
        grown = f"grown-{count}"
        if not store.committed("embeddings", grown):
            vectors = np.stack([record.embedding for record in read_shards(store, manifest)])
            write_like(store, manifest, grown, grow(vectors, count), count)
        manifest = Manifest.model_validate(store.marker("embeddings", grown))
    captioned = {"data.captions": captions, "data.images": images}
    log = store.cache("bench") / "queries.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(_query_log(load_config(None, {"workspace": workspace, **captioned})))
    sources: dict[str, dict[str, Any]] = {
        "held-out captions": captioned,
        "query log": {"data.queries": str(log)},
        "everyday texts": {},
        "items of the corpus": {"index.queries": 0},
    }
    asked = choose_texts(load_config(None, {"workspace": workspace, **captioned}))
    assert asked
    rows = []
    for source, own in sources.items():
        for name, settings in SETTINGS.items():
            index = {"reuse_from": "none", **settings}
            keys = {"workspace": workspace, **{f"index.{key}": value for key, value in index.items()}, **own}
            rows.append({"source": source, "settings": name, **_measure(load_config(None, keys), manifest, asked)})
            click.echo(json.dumps(rows[-1]), err=True)
    click.echo(json.dumps({"items": manifest.records, "rows": rows}, indent=2))


def _query_log(config: Config) -> str:
    """Returns a query log with the words of the training images' captions."""
    images = split_queries(split_heldout(load_captions(config), config, training=False), config.index.seed).training
    captions = [re.findall(r"[a-z]+", text.lower()) for image in images for text in image.captions]
    common = {word for word, _ in Counter(word for words in captions for word in words).most_common(COMMON_WORDS)}
    common -= {"dog", "man", "woman", "boy", "girl", "child", "children", "people", "water", "snow", "grass", "beach"}
    shortened = Counter(" ".join([w for w in words if w not in common][:LOGGED_WORDS]) for words in captions)
    return "".join(f"{text}\t{times}\n" for text, times in sorted(shortened.items()) if text)


def _measure(config: Config, manifest: Manifest, asked: QueryTexts) -> dict[str, Any]:
    """Builds an index; returns its parameters, and its recall on captions that did not tune it."""
    store = Workspace(config.workspace)
    build = build_index(config, manifest.id)
    quantizer = Quantizer.from_bytes((store.local("searchers", build["id"]) / QUANTIZER).read_bytes(), QUANTIZER)
    encoder = store.local("encoders", manifest.encoder) / TEXT_TFLITE
    queries = embed_texts(encoder, asked.verification, store.cache("queries"))
    shards = open_corpus(store, manifest)
    neighbors = scan_corpus(shards, manifest.dim, 1, 0, queries, 20, 2).neighbors
    parameters = IndexParameters(**build["parameters"])
    with tempfile.TemporaryDirectory() as scratch:
        encoded = encode_corpus(store, manifest, shards, quantizer, config.index, 2, Path(scratch) / "metadata")
        recall = measure_recall(quantizer, encoded, parameters, GroundTruth(queries, neighbors))
    searcher = ReferenceSearcher(
        quantizer.centroids, quantizer.codebooks, encoded.codes, encoded.partition_sizes, parameters.lut_type
    )
    route = searcher.route(queries @ inverse_transpose(quantizer.transform).T, parameters.partitions_searched)
    tuning = build["training"]["tuning"]
    return {
        "query_kind": tuning["query_kind"],
        "own_recall_at_10": tuning["recall_at_10"]["verification"]["recall_at_10"],
        "recall_at_10": recall["recall_at_10"],
        "interval": recall["interval"],
        "codes_scanned": round(float(encoded.partition_sizes[route].sum(axis=1).mean())),
        "bytes_per_image": round(build["bytes_per_image"], 1),
        **build["parameters"],
    }


if __name__ == "__main__":
    main()
