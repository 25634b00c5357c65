"""Compares the search times of the reader and of the Task Library on one synthetic index, on one thread; prints JSON.

    make ondevice
    PYTHONPATH=ondevice/python python -m tests.bench.runtimes --count 1000000 --code-bytes 96

Both answer the same query vectors, in alternating rounds, and must return the same scores. The Task Library's time
contains its encoder, a single look-up here; `encoding` is what it takes on an index of one item.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import numpy.typing as npt

from indexer.device.index_writer import write_index
from indexer.encoding.encoded_shards import EncodedCorpus
from searchforge.config import LutType
from searchforge.processes import isolated
from searchforge_reader import Index
from tests import lookup_encoder
from tests.bench.grown_set import grow

DIM, K, ROUNDS = 128, 10, 5
BASE, GROUPS = 7_000, 200
"""Number of vectors from which the others grow, and of groups of similar ones among them."""


@click.command()
@click.option("--count", default=1_000_000, show_default=True)
@click.option("--code-bytes", default=96, show_default=True)
@click.option("--partitions", default=4_000, show_default=True)
@click.option("--searched", default=55, show_default=True, help="Partitions that a query searches.")
@click.option("--lut-type", default="float", show_default=True, type=click.Choice(get_args(LutType)))
@click.option("--queries", default=500, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps the index here, and uses it again.")
def main(
    count: int, code_bytes: int, partitions: int, searched: int, lut_type: LutType, queries: int, folder: Path | None
) -> None:
    with tempfile.TemporaryDirectory(prefix="searchforge-bench-") as temporary:
        folder = folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        path = folder / f"{count}-{code_bytes}-{partitions}-{searched}-{lut_type}.ldb"
        base, asked = _base(), folder / "queries.npy"
        np.save(asked, _queries(base, queries))
        if not path.is_file():
            _write(np.concatenate(list(grow(base, count))), code_bytes, partitions, searched, lut_type, path)
            _write(base[:1], code_bytes, 1, 1, lut_type, folder / "one.ldb")
        report = _compare(path, folder / "one.ldb", np.load(asked), folder)
    shape = {"items": count, "code_bytes": code_bytes, "partitions": partitions, "searched": searched}
    click.echo(json.dumps({**shape, "lut_type": lut_type, **report}, indent=2))


def _compare(path: Path, one: Path, queries: npt.NDArray[np.float32], folder: Path) -> dict[str, Any]:
    encoder, output = str(folder / "encoder.tflite"), str(folder / "hits.npz")
    times: dict[str, list[float]] = {"reader": [], "task_library": [], "encoding": []}
    with isolated.Session(lookup_encoder.MODULE) as session:
        session.call({"do": "write", "vectors": str(folder / "queries.npy"), "encoder": encoder})
        before, start = _memory(), time.perf_counter()
        index = Index(path)
        opening = time.perf_counter() - start
        with index:
            for _ in range(ROUNDS):
                for name, searched in (("encoding", one), ("task_library", path)):
                    request = {
                        "searcher": encoder,
                        "queries": len(queries),
                        "k": K,
                        "output": output,
                        "index": str(searched),
                    }
                    session.call({"do": "search", **request})
                    with np.load(output) as hits:
                        distances = hits["distances"]
                        times[name] += hits["milliseconds"].tolist()
                for query, expected in zip(queries, distances, strict=True):
                    start = time.perf_counter()
                    found = index.search(query, K)
                    times["reader"].append((time.perf_counter() - start) * 1e3)
                    assert np.array_equal([-hit.score for hit in found], expected), "the scores differ"
        grown = _memory() - before
    figures = {name: _percentiles(np.array(taken)) for name, taken in times.items()}
    faster = {
        "with encoding": figures["task_library"]["p50"] / figures["reader"]["p50"],
        "without encoding": (figures["task_library"]["p50"] - figures["encoding"]["p50"]) / figures["reader"]["p50"],
    }
    return {
        "milliseconds": figures,
        "times_faster_at_p50": {name: round(ratio, 2) for name, ratio in faster.items()},
        "reader_opening_ms": round(opening * 1e3, 1),
        "reader_memory_mb": round(grown / 1e6, 1),
    }


def _percentiles(milliseconds: npt.NDArray[np.float64]) -> dict[str, float]:
    return {f"p{percent}": round(float(np.percentile(milliseconds, percent)), 3) for percent in (50, 99)}


def _memory() -> int:
    """Returns the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _base() -> npt.NDArray[np.float32]:
    """Returns vectors in groups, whose variance falls from dimension to dimension as that of embeddings does."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, DIM + 1) ** -0.5
    groups = rng.normal(size=(GROUPS, DIM)) * spread
    vectors = groups[rng.integers(GROUPS, size=BASE)] + 0.7 * rng.normal(size=(BASE, DIM)) * spread
    rotation, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    return _normalised(vectors @ rotation)


def _queries(base: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(1)
    return _normalised(base[rng.integers(len(base), size=count)] + 0.05 * rng.normal(size=(count, DIM)))


def _normalised(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _write(
    vectors: npt.NDArray[np.float32], code_bytes: int, partitions: int, searched: int, lut_type: LutType, path: Path
) -> None:
    """Writes an index whose centroids are vectors of the corpus, and whose codebooks are vectors' blocks."""
    rng = np.random.default_rng(2)
    centroids = vectors[rng.choice(len(vectors), partitions, replace=False)]
    nearest = np.concatenate(
        [np.argmax(block @ centroids.T, axis=1) for block in np.array_split(vectors, max(1, len(vectors) // 8192))]
    )
    order = np.argsort(nearest, kind="stable")
    vectors = vectors[order]
    samples = vectors[rng.integers(len(vectors), size=256)]
    codebooks = [np.ascontiguousarray(book) for book in np.array_split(samples, code_bytes, axis=1)]
    codes = np.empty((len(vectors), code_bytes), np.uint8)
    start = 0
    for block, book in enumerate(codebooks):
        end = start + book.shape[1]
        for rows in np.array_split(np.arange(len(vectors)), max(1, len(vectors) // 65_536)):
            products = vectors[rows, start:end] @ book.T
            codes[rows, block] = np.argmax(products - (book**2).sum(axis=1) / 2, axis=1)
        start = end
    values = [b"%d" % item for item in range(len(vectors))]
    blob = path.with_suffix(".blob")
    blob.write_bytes(b"".join(values))
    encoded = EncodedCorpus(
        codes=codes,
        partition_sizes=np.bincount(nearest, minlength=partitions),
        metadata_blob=np.memmap(blob, np.uint8, "r"),
        metadata_offsets=np.cumsum([0, *map(len, values)]),
        order=np.arange(len(vectors)),
        squared_error=0.0,
    )
    write_index(encoded, centroids, codebooks, lut_type, (searched - 0.5) / partitions, True, "", path)


if __name__ == "__main__":
    main()
