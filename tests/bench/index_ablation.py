"""Measures what each part of the quantizer contributes to recall@10, by code size, as a Markdown table.

    python -m tests.bench.index_ablation --workspace bench --embeddings RUN --captions captions.json --images photos/

Queries are captions that neither the query map nor the codebooks were trained on. Only the exact top 100 of each query
are encoded and scored; see indexer.tuning.tuner.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import click
import numpy as np
import numpy.typing as npt

from indexer.corpus.corpus_scan import ExactNeighbors, exact_search, scan_corpus
from indexer.corpus.queries import QueryEmbeddings, choose_texts, embed_queries
from indexer.corpus.shards import open_corpus
from indexer.quantization.block_allocation import block_widths
from indexer.quantization.codebooks import train_codebooks
from indexer.quantization.codes import decode, encode
from indexer.quantization.query_direction import LANDMARKS, QueryDirectionModel
from indexer.quantization.query_map import inverse_transpose, query_aware_map
from indexer.quantization.scann_training import THRESHOLD, parallel_weight
from searchforge.artifacts.encoder import TEXT_TFLITE
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import IndexConfig, load_config

Matrix = npt.NDArray[np.float32]
SAMPLE, PAIRED, CANDIDATES, K = 50_000, 10, 100, 10
OWN, LEARNED = "own", "learned"

ROWS: dict[str, tuple[str, bool, str | None]] = {
    "even blocks, nearest entries": ("identity", True, None),
    "even blocks, anisotropic (what Model Maker can do)": ("identity", True, OWN),
    "principal axes and uneven blocks, nearest entries": ("axes", False, None),
    "principal axes and uneven blocks, anisotropic": ("axes", False, OWN),
    "principal axes and uneven blocks, direction of the queries": ("axes", False, LEARNED),
    "query-aware map and even blocks, nearest entries": ("queries", True, None),
    "query-aware map and uneven blocks, nearest entries": ("queries", False, None),
    "query-aware map and uneven blocks, anisotropic": ("queries", False, OWN),
    "query-aware map and uneven blocks, direction of the queries (the default)": ("queries", False, LEARNED),
}
"""Map, whether blocks are even, and the direction in which quantization errors are weighted."""


@click.command()
@click.option("--workspace", required=True)
@click.option("--embeddings", required=True, help="Id of the embedding run.")
@click.option("--captions", required=True)
@click.option("--images", required=True)
@click.option("--sizes", default="32,48,64,96", show_default=True)
def main(workspace: str, embeddings: str, captions: str, images: str, sizes: str) -> None:
    config = load_config(None, {"workspace": workspace, "data.captions": captions, "data.images": images})
    store = Workspace(workspace)
    manifest = Manifest.model_validate(store.marker("embeddings", embeddings))
    texts = choose_texts(config)
    assert texts
    queries = embed_queries(store.local("encoders", manifest.encoder) / TEXT_TFLITE, texts, store.cache("queries"))
    shards, threads = open_corpus(store, manifest), len(os.sched_getaffinity(0))
    found = scan_corpus(shards, manifest.dim, SAMPLE, 0, queries.verification, CANDIDATES, threads)
    columns = [int(size) for size in sizes.split(",")]
    click.echo(f"| codes | {' | '.join(f'{size} B' for size in columns)} |\n|---|{'---|' * len(columns)}")
    for name, (kind, even, direction) in ROWS.items():
        recalls = []
        for size in columns:
            if even and manifest.dim % size:
                recalls.append("")
                continue
            recalls.append(
                f"{_recall(found.sample, queries, found.neighbors, kind, even, direction, size, threads):.3f}"
            )
        click.echo(f"| {name} | {' | '.join(recalls)} |")


def _recall(
    sample: Matrix,
    queries: QueryEmbeddings,
    neighbors: ExactNeighbors,
    kind: str,
    even: bool,
    direction: str | None,
    size: int,
    threads: int,
) -> float:
    dim = sample.shape[1]
    transform = {
        "identity": lambda: np.eye(dim, dtype=np.float32),
        "axes": lambda: query_aware_map(sample, None),
        "queries": lambda: query_aware_map(sample, queries.training),
    }[kind]()
    mapped = sample @ transform.T
    widths: Sequence[int] = [dim // size] * size if even else block_widths(mapped.var(axis=0), size)
    config = IndexConfig()
    books = train_codebooks(mapped, widths, config.training_iterations, 0, threads)
    _, first, inverse = np.unique(neighbors.items, return_index=True, return_inverse=True)
    vectors = neighbors.vectors.reshape(-1, dim)[first]
    directions = np.zeros_like(vectors)
    if direction == OWN:
        weight = parallel_weight(THRESHOLD, dim) if kind == "identity" else config.anisotropic_weight
        directions = QueryDirectionModel.identity(dim).directions(vectors, vectors @ transform.T, weight)
    elif direction == LEARNED:
        query_direction = _query_direction(sample, queries.training, transform)
        directions = query_direction.directions(vectors, vectors @ transform.T, config.anisotropic_weight)
    decoded = decode(encode(vectors @ transform.T, directions, books), books)
    mapped_queries = queries.verification @ inverse_transpose(transform).T
    recalls = []
    for query, items in zip(mapped_queries, inverse.reshape(neighbors.items.shape), strict=True):
        best = np.argpartition(-(decoded[items] @ query), K)[:K]
        recalls.append(np.mean(best < K))
    return float(np.mean(recalls))


def _query_direction(sample: Matrix, training: Matrix, transform: Matrix) -> QueryDirectionModel:
    best = exact_search(training, sample, PAIRED).items
    vectors = sample[best.reshape(-1)]
    mapped_queries = np.repeat(training, PAIRED, axis=0) @ inverse_transpose(transform).T
    return QueryDirectionModel.fit(vectors, vectors @ transform.T, mapped_queries, sample[:LANDMARKS])


if __name__ == "__main__":
    main()
