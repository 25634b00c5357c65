"""Child process in which benchmarks build an index like Model Maker's Searcher, and search any index.

ScaNN partitions and hashes all vectors at once, and the Task Library's converter writes the index, all in memory. The
child process (searchforge.processes.isolated) receives files by path, and its peak memory is that of the build.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from searchforge.processes import isolated
from tests.bench.peak_memory import peak_memory

MODULE = "tests.bench.scann_baseline"
"""Module for an isolated Session; a request has the name of a function (`do`) and the function's arguments."""


def build(
    vectors: str, partitions: int, dims_per_block: int, lut_type: str, searched: int, index: str
) -> dict[str, Any]:
    """Builds the index of a .npy matrix [n, dim] float32; an item's metadata is JSON with its row number as the id."""
    from scann.scann_ops.py import scann_ops_pybind
    from tensorflow_lite_support.scann_ondevice.cc.core import serialized_searcher_pb2 as schema
    from tensorflow_lite_support.scann_ondevice.cc.python import index_builder

    from indexer.quantization.scann_training import read_trained, scann_config

    matrix = np.load(vectors, allow_pickle=False)
    seconds = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = scann_config(min(len(matrix), 100_000), matrix.shape[1], partitions, dims_per_block, 0)
        scann_ops_pybind.create_searcher(matrix, config).serialize(folder)
        clusters, codebooks = read_trained(Path(folder))
        codes = np.load(Path(folder) / "hashed_dataset.npy", allow_pickle=False)
        assignments = np.load(Path(folder) / "datapoint_to_token.npy", allow_pickle=False).astype(np.uint32)
    seconds["scann"] = time.perf_counter() - start
    start = time.perf_counter()
    device = schema.ScannOnDeviceConfig(query_distance=schema.DOT_PRODUCT)
    device.partitioner.query_distance = schema.DOT_PRODUCT
    device.partitioner.search_fraction = (searched - 0.5) / partitions
    for cluster in clusters:
        device.partitioner.leaf.add().dimension.extend(cluster.tolist())
    hashing = device.indexer.asymmetric_hashing
    hashing.query_distance = schema.DOT_PRODUCT
    hashing.lookup_type = getattr(schema.AsymmetricHashingProto, lut_type.upper())
    for codebook in codebooks:
        subspace = hashing.subspace.add()
        for entry in codebook:
            subspace.entry.add().dimension.extend(entry.tolist())
    proto = device.SerializeToString()
    table = index_builder.create_serialized_index_file(
        codes.shape[1],
        proto,
        "",
        assignments,
        [b'{"id":"%08d.jpg"}' % item for item in range(len(codes))],
        compression=True,
        hashed_database=codes.reshape(-1),
        float_database=None,
    )
    Path(index).write_bytes(table)
    seconds["write_index"] = time.perf_counter() - start
    return {
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_mb": peak_memory() / 1e6,
        "bytes_per_image": (codes.nbytes + len(proto)) / len(codes),
        "index_mb": len(table) / 1e6,
    }


def search(encoder: str, index: str, first: int, count: int, k: int, output: str) -> dict[str, Any]:
    """Searches for the texts q<first> and following on one thread, with an index in a separate file.

    Args:
      output: .npz file to write, with ids [count, k] as text and milliseconds [count].
    """
    import json

    from tflite_support.task import core, processor, text

    options = text.TextSearcherOptions(
        core.BaseOptions(file_name=encoder, num_threads=1),
        search_options=processor.SearchOptions(max_results=k, index_file_name=index),
    )
    searcher = text.TextSearcher.create_from_options(options)
    for row in range(first, first + 20):
        searcher.search(f"q{row}")
    ids = np.full((count, k), "", "U16")
    milliseconds = np.empty(count)
    for row in range(count):
        start = time.perf_counter()
        hits = searcher.search(f"q{first + row}").nearest_neighbors
        milliseconds[row] = (time.perf_counter() - start) * 1e3
        ids[row, : len(hits)] = [json.loads(bytes(hit.metadata))["id"] for hit in hits]
    np.savez(output, ids=ids, milliseconds=milliseconds)
    return {}


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    arguments = {name: value for name, value in request.items() if name != "do"}
    return {"build": build, "search": search}[request["do"]](**arguments)


if __name__ == "__main__":
    isolated.serve(_handle)
