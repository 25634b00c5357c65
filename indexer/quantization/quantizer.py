"""Quantizer of an index: the query-aware map, partitions and codebooks, trained on a sample and then frozen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from indexer.quantization.codes import concatenate_codebooks, encode
from indexer.quantization.partitions import PartitionAssigner
from indexer.quantization.query_direction import QueryDirectionModel, multiply_rows
from searchforge.errors import JobError
from searchforge.hashing import sha256_bytes

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quantizer:
    """Encodes vectors into partitions and codes.

    Attributes:
      transform: [dim, dim] float32, the query-aware map A; codes represent A x (indexer.quantization.query_map).
      clusters: [partitions, dim] float32, cluster means; a vector's partition is the nearest one.
      codebooks: [256, dimensions of the block] float32 for each block of mapped dimensions, in order.
      query_direction: Model of the mean direction of the queries near a vector.
      anisotropic_weight: Weight of a code's error in that direction (indexer.quantization.codes).
    """

    transform: Matrix
    clusters: Matrix
    codebooks: tuple[Matrix, ...]
    query_direction: QueryDirectionModel
    anisotropic_weight: float

    @cached_property
    def _assigner(self) -> PartitionAssigner:
        return PartitionAssigner(self.clusters)

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the serialized quantizer."""
        return sha256_bytes(self.to_bytes())[:16]

    @cached_property
    def centroids(self) -> Matrix:
        """Mapped cluster means [partitions, dim] float32, which the device compares with mapped queries."""
        return multiply_rows(self.clusters, self.transform)

    def map(self, vectors: Matrix) -> Matrix:
        """Maps vectors [n, dim], row by row."""
        return multiply_rows(vectors, self.transform)

    def encode(self, vectors: Matrix) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Returns partitions [n] and codes [n, blocks] of vectors [n, dim], row by row, independent of the batch."""
        return self._assigner.assign(vectors), self.codes(vectors)

    def codes(self, vectors: Matrix) -> npt.NDArray[np.uint8]:
        """Returns the codes [n, blocks] of vectors [n, dim]."""
        mapped = self.map(vectors)
        return encode(mapped, self.query_direction.directions(vectors, mapped, self.anisotropic_weight), self.codebooks)

    def to_bytes(self) -> bytes:
        """Returns the bytes of a safetensors file."""
        entries, ends = concatenate_codebooks(self.codebooks)
        tensors = {
            "transform": self.transform,
            "clusters": self.clusters,
            "entries": entries,
            "block_ends": ends,
            "landmarks": self.query_direction.landmarks,
            "weights": self.query_direction.weights,
            "parallel": np.array([self.anisotropic_weight]),
        }
        written: bytes = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
        return written

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Quantizer:
        """Reads what `to_bytes` wrote.

        Args:
          name: File name, for errors.

        Raises:
          JobError: The data is not a serialized quantizer.
        """
        try:
            tensors = load(data)
            books = np.split(tensors["entries"].T, tensors["block_ends"][:-1], axis=1)
            (anisotropic_weight,) = tensors["parallel"].tolist()
            codebooks = tuple(map(np.ascontiguousarray, books))
            query_direction = QueryDirectionModel(tensors["landmarks"], tensors["weights"])
            return cls(tensors["transform"], tensors["clusters"], codebooks, query_direction, anisotropic_weight)
        except (SafetensorError, KeyError, ValueError) as error:
            raise JobError(f"{name} is not a quantizer: {error}; delete it and run the index again") from None
