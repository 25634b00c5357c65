"""Writes the Task Library's index: a LevelDB table of codes by partition, the search's configuration and metadata.

Format: tensorflow_lite_support/scann_ondevice. Imports tflite-support, so it runs in the worker process only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexer.parameters import IndexParameters
from indexer.quantize import QuantizedCorpus


def write_index(
    corpus: QuantizedCorpus,
    parameters: IndexParameters,
    metadata: Sequence[bytes],
    user_info: str,
    path: Path,
) -> dict[str, int]:
    """Writes the index file of a quantized corpus.

    Args:
      metadata: one value for each vector, in the vectors' order.
      user_info: stored beside the index; the Task Library's get_user_info returns it.

    Returns:
      Size in bytes of every part before compression, and of the file.
    """
    from tensorflow_lite_support.scann_ondevice.cc.python import index_builder

    config = ondevice_config(corpus, parameters).SerializeToString()
    table: bytes = index_builder.create_serialized_index_file(
        corpus.codes.shape[1],  # the format's "embedding_dim": bytes of a code
        config,
        user_info,
        corpus.assignments,
        list(metadata),
        compression=parameters.compression,
        hashed_database=np.ascontiguousarray(corpus.codes).reshape(-1),
        float_database=None,
    )
    path.write_bytes(table)
    return {
        "codes": corpus.codes.nbytes,
        "centroids_and_codebooks": len(config),
        "metadata": sum(map(len, metadata)),
        "user_info": len(user_info.encode()),
        "index_file": len(table),
    }


def ondevice_config(corpus: QuantizedCorpus, parameters: IndexParameters) -> Any:
    """Returns the ScannOnDeviceConfig: partitioner, codebooks, distance (negative dot product) and look-up type."""
    from tensorflow_lite_support.scann_ondevice.cc.core import serialized_searcher_pb2 as schema

    config = schema.ScannOnDeviceConfig(query_distance=schema.DOT_PRODUCT)
    config.partitioner.query_distance = schema.DOT_PRODUCT
    config.partitioner.search_fraction = parameters.search_fraction
    for centroid in corpus.centroids:
        config.partitioner.leaf.add().dimension.extend(centroid.tolist())
    hashing = config.indexer.asymmetric_hashing
    hashing.query_distance = schema.DOT_PRODUCT
    hashing.lookup_type = getattr(schema.AsymmetricHashingProto, parameters.lookup.upper())
    for codebook in corpus.codebooks:
        subspace = hashing.subspace.add()
        for entry in codebook:
            subspace.entry.add().dimension.extend(entry.tolist())
    return config
