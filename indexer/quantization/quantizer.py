"""The quantizer of an index: the map, the partitions and the codebooks, trained on a sample and then frozen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from indexer.quantization.codebooks import encode, joined
from indexer.quantization.partitions import Assigner
from indexer.quantization.query_direction import Leaning, product
from searchforge.errors import JobError
from searchforge.hashing import sha256_bytes

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quantizer:
    """What turns a vector into its partition and its code; the same for every item of an index.

    Attributes:
      transform: [dim, dim] float32; codes are made of transform @ x, see indexer.quantization.query_map.
      clusters: [partitions, dim] float32, means of clusters of vectors: the nearest one is a vector's partition.
      codebooks: for each block of mapped dimensions, in their order, [256, dimensions of the block] float32.
      leaning: where the queries of a vector lie.
      anisotropic_weight: squared length that directions are given, see indexer.quantization.codebooks.
    """

    transform: Matrix
    clusters: Matrix
    codebooks: tuple[Matrix, ...]
    leaning: Leaning
    anisotropic_weight: float

    @cached_property
    def _assigner(self) -> Assigner:
        return Assigner(self.clusters)

    @cached_property
    def id(self) -> str:
        """Hash of everything that decides a code."""
        return sha256_bytes(self.to_bytes())[:16]

    @cached_property
    def centroids(self) -> Matrix:
        """The clusters' means [partitions, dim] in the mapped space, in which the device compares them with queries."""
        return product(self.clusters, self.transform)

    def map(self, vectors: Matrix) -> Matrix:
        """Returns mapped vectors [n, dim]."""
        return product(vectors, self.transform)

    def encode(self, vectors: Matrix) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Returns the partitions [n] and codes [n, blocks] of vectors [n, dim], each by itself: not of its batch."""
        return self._assigner.assign(vectors), self.codes(vectors)

    def codes(self, vectors: Matrix) -> npt.NDArray[np.uint8]:
        """Returns the codes [n, blocks] of vectors [n, dim]."""
        mapped = self.map(vectors)
        return encode(mapped, self.leaning.directions(vectors, mapped, self.anisotropic_weight), self.codebooks)

    def to_bytes(self) -> bytes:
        """Returns one safetensors file."""
        entries, ends = joined(self.codebooks)
        tensors = {
            "transform": self.transform,
            "clusters": self.clusters,
            "entries": entries,
            "block_ends": ends,
            "landmarks": self.leaning.landmarks,
            "weights": self.leaning.weights,
            "parallel": np.array([self.anisotropic_weight]),
        }
        written: bytes = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
        return written

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Quantizer:
        """Reads what `to_bytes` wrote.

        Raises:
          JobError: it is something else; the message holds `name`.
        """
        try:
            parts = load(data)
            books = np.split(parts["entries"].T, parts["block_ends"][:-1], axis=1)
            (anisotropic_weight,) = parts["parallel"].tolist()
            codebooks = tuple(map(np.ascontiguousarray, books))
            leaning = Leaning(parts["landmarks"], parts["weights"])
            return cls(parts["transform"], parts["clusters"], codebooks, leaning, anisotropic_weight)
        except (SafetensorError, KeyError, ValueError) as error:
            raise JobError(f"{name} is not a quantizer: {error}; delete it and index again") from None
