"""A TFLite text encoder that embeds "q17" as row 17 of a matrix, for arbitrary query vectors in the Task Library.

The model is a single GATHER behind a regex tokenizer, so encoding is fast and exact. The module also runs as the child
process that tflite-support requires, which writes the model, writes an index with tflite-support's own builder, and
searches. Files are passed by path.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from searchforge.processes import isolated

MODULE = "tests.lookup_encoder"
"""Module for an isolated Session; a request has the name of a function (`do`) and the function's arguments."""


def write(vectors: str, encoder: str) -> dict[str, Any]:
    """Writes a TFLite encoder with metadata for a .npy matrix, [m, dim] float32."""
    matrix = np.load(vectors, allow_pickle=False)
    vocabulary = Path(encoder).with_suffix(".txt")
    words = [f"q{row}" for row in range(len(matrix))]
    vocabulary.write_text("".join(f"{word} {i}\n" for i, word in enumerate([*words, "<PAD>", "<UNKNOWN>"])))
    model = _with_metadata(_gather_model(np.pad(matrix, ((0, 2), (0, 0)))), vocabulary)
    vocabulary.unlink()  # the model file contains a copy
    Path(encoder).write_bytes(model)
    return {}


def write_index(
    arrays: str,
    lut_type: str,
    search_fraction: float,
    index: str,
    metadata: str | None = None,
    user_info: str = "",
    compression: bool = False,
) -> dict[str, Any]:
    """Writes an index with tflite-support's own builder.

    Args:
      arrays: .npz file with centroids [partitions, dim], entries [256, dim] (all codebooks, concatenated),
        widths [blocks], codes [n, blocks], and assignments [n] uint32 in ascending order.
      metadata: .npz file with the items' metadata, `data` [bytes] uint8 and `offsets` [n + 1]; by default, an item's
        metadata is its index in decimal.
    """
    from tensorflow_lite_support.scann_ondevice.cc.core import serialized_searcher_pb2 as schema
    from tensorflow_lite_support.scann_ondevice.cc.python import index_builder

    config = schema.ScannOnDeviceConfig(query_distance=schema.DOT_PRODUCT)
    config.partitioner.query_distance = schema.DOT_PRODUCT
    config.partitioner.search_fraction = search_fraction
    hashing = config.indexer.asymmetric_hashing
    hashing.query_distance = schema.DOT_PRODUCT
    hashing.lookup_type = getattr(schema.AsymmetricHashingProto, lut_type.upper())
    with np.load(arrays, allow_pickle=False) as loaded:
        for centroid in loaded["centroids"]:
            config.partitioner.leaf.add().dimension.extend(centroid.tolist())
        for codebook in np.split(loaded["entries"], np.cumsum(loaded["widths"])[:-1], axis=1):
            subspace = hashing.subspace.add()
            for entry in codebook:
                subspace.entry.add().dimension.extend(entry.tolist())
        codes, assignments = loaded["codes"], loaded["assignments"]
    values = [b"%d" % item for item in range(len(codes))]
    if metadata:
        with np.load(metadata, allow_pickle=False) as loaded:
            data, bounds = loaded["data"].tobytes(), loaded["offsets"].tolist()
        values = [data[start:end] for start, end in itertools.pairwise(bounds)]
    table = index_builder.create_serialized_index_file(
        codes.shape[1],
        config.SerializeToString(),
        user_info,
        assignments,
        values,
        compression=compression,
        hashed_database=codes.reshape(-1),
        float_database=None,
    )
    Path(index).write_bytes(table)
    return {}


def search(searcher: str, queries: int, k: int, output: str, index: str | None = None) -> dict[str, Any]:
    """Searches with the first `queries` rows on one thread.

    Args:
      searcher: TFLite file that contains an index, or only an encoder if `index` is given. The metadata of an item must
        be its index in decimal.
      output: .npz file to write, with items [queries, k] int64 and distances [queries, k] float32, padded with -1 and
        infinity, and milliseconds [queries] float64.
    """
    from tflite_support.task import core, processor, text

    options = text.TextSearcherOptions(
        core.BaseOptions(file_name=searcher, num_threads=1),
        search_options=processor.SearchOptions(max_results=k, index_file_name=index),
    )
    opened = text.TextSearcher.create_from_options(options)
    items, distances = np.full((queries, k), -1), np.full((queries, k), np.inf, np.float32)
    milliseconds = np.empty(queries)
    for row in range(queries):
        query = f"q{row}"
        start = time.perf_counter()
        hits = opened.search(query).nearest_neighbors
        milliseconds[row] = (time.perf_counter() - start) * 1e3
        items[row, : len(hits)] = [int(hit.metadata) for hit in hits]
        distances[row, : len(hits)] = [hit.distance for hit in hits]
    np.savez(output, items=items, distances=distances, milliseconds=milliseconds)
    return {}


def _gather_model(matrix: np.ndarray) -> bytes:
    """Returns a model with a single operation: token [1] int32 -> row [1, dim] float32."""
    import flatbuffers
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    def tensor(name: str, shape: list[int], kind: int, buffer: int) -> schema.TensorT:
        described = schema.TensorT()
        described.name, described.shape, described.type, described.buffer = name, shape, kind, buffer
        return described

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.GATHER
    code.version = 1
    gather = schema.OperatorT()
    gather.inputs, gather.outputs = [0, 1], [2]
    gather.builtinOptionsType = schema.BuiltinOptions.GatherOptions
    gather.builtinOptions = schema.GatherOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("matrix", list(matrix.shape), schema.TensorType.FLOAT32, 1),
        tensor("text", [1], schema.TensorType.INT32, 0),
        tensor("embedding", [1, matrix.shape[1]], schema.TensorType.FLOAT32, 0),
    ]
    graph.inputs, graph.outputs, graph.operators = [1], [2], [gather]
    weights = schema.BufferT()
    weights.data = np.frombuffer(matrix.astype("<f4").tobytes(), np.uint8)
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes, model.subgraphs, model.buffers = [code], [graph], [schema.BufferT(), weights]
    builder = flatbuffers.Builder(matrix.nbytes)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _with_metadata(model: bytes, vocabulary: Path) -> bytes:
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info, metadata_writer

    tokenizer = metadata_info.RegexTokenizerMd(r"[^\w]+", str(vocabulary))
    writer = metadata_writer.MetadataWriter.create_from_metadata_info(
        bytearray(model),
        metadata_info.GeneralMd(name="LookupEncoder"),
        [metadata_info.InputTextTensorMd("text", tokenizer_md=tokenizer)],
        [metadata_info.TensorMd("embedding")],
        [str(vocabulary)],
    )
    return bytes(writer.populate())


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    arguments = {name: value for name, value in request.items() if name != "do"}
    operations: dict[str, Callable[..., dict[str, Any]]]
    operations = {"write": write, "write_index": write_index, "search": search}
    return operations[request["do"]](**arguments)


if __name__ == "__main__":
    isolated.serve(_handle)
