"""Trains ScaNN on a corpus and takes out of it what the on-device index is made of.

Runs in the worker process: ScaNN logs to standard error and needs no TensorFlow, which it would import.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.parameters import IndexParameters
from searchforge.errors import JobError

CODEBOOK_SIZE = 256
"""Entries of a codebook: the on-device format stores a code in 8 bits."""


@dataclass(frozen=True)
class QuantizedCorpus:
    """A corpus as partitions and codes.

    Attributes:
      centroids: [partitions, dim] float32.
      codebooks: for each block of dimensions, [256, dimensions of the block] float32.
      codes: [n, blocks] uint8, the entry of each block's codebook that stands for the vector.
      assignments: [n] uint32, the partition of each vector.
    """

    centroids: npt.NDArray[np.float32]
    codebooks: tuple[npt.NDArray[np.float32], ...]
    codes: npt.NDArray[np.uint8]
    assignments: npt.NDArray[np.uint32]

    def save(self, path: Path) -> None:
        """Writes one .npz file."""
        with path.open("wb") as file:
            np.savez(
                file,
                centroids=self.centroids,
                codebooks=np.concatenate(self.codebooks, axis=1),
                block_dims=np.array([book.shape[1] for book in self.codebooks]),
                codes=self.codes,
                assignments=self.assignments,
            )

    @classmethod
    def load(cls, path: Path) -> QuantizedCorpus:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as parts:
            bounds = np.cumsum(parts["block_dims"])[:-1]
            codebooks = tuple(np.split(parts["codebooks"], bounds, axis=1))
            return cls(parts["centroids"], codebooks, parts["codes"], parts["assignments"])


def quantize(vectors: npt.NDArray[np.float32], parameters: IndexParameters) -> QuantizedCorpus:
    """Partitions a corpus and encodes it with asymmetric hashing.

    Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector Quantization",
    arXiv:1908.10396. Without residual quantization, which the device does not have.

    Args:
      vectors: [n, dim] float32, L2-normalised.

    Raises:
      JobError: ScaNN refused the vectors.
    """
    count = len(vectors)
    # ScaNN trains a codebook on no fewer points than it has entries; repeated ones change no k-means optimum.
    training = np.resize(vectors, (CODEBOOK_SIZE, vectors.shape[1])) if count < CODEBOOK_SIZE else vectors
    with tempfile.TemporaryDirectory(prefix="searchforge-scann-") as folder:
        try:
            _train(training, parameters).serialize(folder)
        except RuntimeError as error:
            raise JobError(f"ScaNN could not index {count} vectors: {error}") from error
        return _read(Path(folder), count)


def scann_config(parameters: IndexParameters, dim: int) -> str:
    """Returns the ScannConfig text proto of the parameters."""
    from google.protobuf import text_format
    from scann.proto import scann_pb2
    from scann.scann_ops.py import scann_builder

    shape = np.empty((0, dim), np.float32)
    builder = scann_builder.ScannBuilder(shape, num_neighbors=10, distance_measure="dot_product")
    builder.tree(
        num_leaves=parameters.partitions,
        num_leaves_to_search=parameters.partitions_searched,
        training_sample_size=parameters.training_sample,
        min_partition_size=parameters.min_partition_size,
        training_iterations=parameters.partition_iterations,
        # ScaNN's random initialization walks an unordered set, so every run would number and reseed the
        # partitions differently. k-means++ depends on the seed alone, takes as long and fits as well.
        random_init=False,
    )
    builder.score_ah(
        dimensions_per_block=parameters.dims_per_block,
        anisotropic_quantization_threshold=parameters.anisotropic_threshold or float("nan"),
        training_sample_size=parameters.training_sample,
        hash_type="lut256",
        training_iterations=parameters.codebook_iterations,
        residual_quantization=False,
    )
    config = scann_pb2.ScannConfig()
    text_format.Parse(builder.create_config(), config)
    # Seed 0 is ScaNN's own default: 0 for the partitioning, 1 for the codebooks.
    config.partitioning.clustering_seed = parameters.seed
    config.hash.asymmetric_hash.clustering_seed = parameters.seed + 1
    config.hash.asymmetric_hash.sampling_seed = parameters.seed + 1
    text: str = text_format.MessageToString(config)
    return text


def _train(vectors: npt.NDArray[np.float32], parameters: IndexParameters):  # type: ignore[no-untyped-def]
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind.create_searcher(vectors, scann_config(parameters, vectors.shape[1]))


def _read(folder: Path, count: int) -> QuantizedCorpus:
    """Reads ScaNN's serialized searcher, of which the first `count` vectors are the corpus."""
    from scann.partitioning import partitioner_pb2
    from scann.proto import centers_pb2

    partitioner = partitioner_pb2.SerializedPartitioner.FromString((folder / "serialized_partitioner.pb").read_bytes())
    tree = partitioner.kmeans.kmeans_tree.root
    if [child.leaf_id for child in tree.children] != list(range(len(tree.centers))):
        raise JobError("ScaNN's partitions are not in the order of their leaf ids")
    codebooks = centers_pb2.CentersForAllSubspaces.FromString((folder / "ah_codebook.pb").read_bytes())
    return QuantizedCorpus(
        centroids=np.array([center.dimension for center in tree.centers], np.float32),
        codebooks=tuple(
            np.array([entry.feature_value_float for entry in block.center], np.float32)
            for block in codebooks.subspace_centers
        ),
        codes=np.load(folder / "hashed_dataset.npy", allow_pickle=False)[:count],
        assignments=np.load(folder / "datapoint_to_token.npy", allow_pickle=False)[:count].astype(np.uint32),
    )
