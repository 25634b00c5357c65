"""Trains a quantizer with ScaNN itself, for the 2022 recipe: even blocks, no query-aware map.

Runs in a worker process, which keeps ScaNN's log output and its optional import of TensorFlow out of the parent.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.quantization.codebooks import CODEBOOK_SIZE
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_direction import QueryDirectionModel
from searchforge.errors import JobError

THRESHOLD = 0.2
"""Anisotropic quantization threshold: Model Maker's default."""

PARTITION_ITERATIONS, CODEBOOK_ITERATIONS = 12, 10
"""Iterations of k-means: Model Maker's defaults."""

MIN_PARTITION_SIZE = 50
"""Model Maker's default. During training, ScaNN replaces smaller clusters with halves of larger ones."""


def train_with_scann(sample: npt.NDArray[np.float32], partitions: int, dims_per_block: int, seed: int) -> Quantizer:
    """Returns the quantizer that ScaNN trains on a sample.

    Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector Quantization",
    arXiv:1908.10396. Residual quantization is off, as the device does not support it.

    Args:
      sample: [n, dim] float32, L2-normalised.

    Raises:
      JobError: ScaNN rejected the vectors.
    """
    from scann.scann_ops.py import scann_ops_pybind

    dim = sample.shape[1]
    # ScaNN needs at least as many points as a codebook has entries; repeating points changes no k-means optimum.
    training = np.resize(sample, (CODEBOOK_SIZE, dim)) if len(sample) < CODEBOOK_SIZE else sample
    with tempfile.TemporaryDirectory(prefix="searchforge-scann-") as folder:
        try:
            config = scann_config(len(training), dim, partitions, dims_per_block, seed)
            scann_ops_pybind.create_searcher(training, config).serialize(folder)
        except RuntimeError as error:
            raise JobError(f"ScaNN could not train on {len(sample)} vectors: {error}") from error
        centroids, codebooks = read_trained(Path(folder))
    identity = np.eye(dim, dtype=np.float32)
    return Quantizer(
        identity, centroids, codebooks, QueryDirectionModel.identity(dim), max(0.0, parallel_weight(THRESHOLD, dim))
    )


def scann_config(items: int, dim: int, partitions: int, dims_per_block: int, seed: int) -> str:
    """Returns Model Maker's settings as a ScannConfig text proto."""
    from google.protobuf import text_format
    from scann.proto import scann_pb2
    from scann.scann_ops.py import scann_builder

    shape = np.empty((0, dim), np.float32)
    builder = scann_builder.ScannBuilder(shape, num_neighbors=10, distance_measure="dot_product")
    builder.tree(
        num_leaves=partitions,
        num_leaves_to_search=partitions,
        training_sample_size=items,
        min_partition_size=min(MIN_PARTITION_SIZE, max(1, items // partitions)),
        training_iterations=PARTITION_ITERATIONS,
        # ScaNN's random initialization iterates over an unordered set, so every run would number and reseed the
        # partitions differently. k-means++ depends on the seed alone and is as fast and as accurate.
        random_init=False,
    )
    builder.score_ah(
        dimensions_per_block=dims_per_block,
        anisotropic_quantization_threshold=THRESHOLD,
        training_sample_size=items,
        hash_type="lut256",
        training_iterations=CODEBOOK_ITERATIONS,
        residual_quantization=False,
    )
    config = scann_pb2.ScannConfig()
    text_format.Parse(builder.create_config(), config)
    # Seed 0 is ScaNN's own default: 0 for the partitioning, 1 for the codebooks.
    config.partitioning.clustering_seed = seed
    config.hash.asymmetric_hash.clustering_seed = seed + 1
    config.hash.asymmetric_hash.sampling_seed = seed + 1
    text: str = text_format.MessageToString(config)
    return text


def parallel_weight(threshold: float, dim: int) -> float:
    """Returns the anisotropic weight for a threshold on unit vectors (arXiv:1908.10396, theorem 3.4)."""
    squared = threshold**2
    return squared * (dim - 1) / (1 - squared) - 1


def read_trained(folder: Path) -> tuple[npt.NDArray[np.float32], tuple[npt.NDArray[np.float32], ...]]:
    """Returns the centroids [partitions, dim] and codebooks [256, width] of a serialized ScaNN searcher."""
    from scann.partitioning import partitioner_pb2
    from scann.proto import centers_pb2

    partitioner = partitioner_pb2.SerializedPartitioner.FromString((folder / "serialized_partitioner.pb").read_bytes())
    tree = partitioner.kmeans.kmeans_tree.root
    if [child.leaf_id for child in tree.children] != list(range(len(tree.centers))):
        raise JobError("ScaNN's partitions are not in the order of their leaf ids")
    codebooks = centers_pb2.CentersForAllSubspaces.FromString((folder / "ah_codebook.pb").read_bytes())
    return np.array([center.dimension for center in tree.centers], np.float32), tuple(
        np.array([entry.feature_value_float for entry in block.center], np.float32)
        for block in codebooks.subspace_centers
    )
