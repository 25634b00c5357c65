"""The index parameters of one corpus: what the configuration leaves open is decided here, by the corpus' size."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from searchforge.config import IndexConfig
from searchforge.errors import UsageError

RECIPE_MIN_PARTITION_SIZE = 50
"""Model Maker's default. While it trains, ScaNN replaces smaller clusters by halves of larger ones, so a minimum near
the average size leaves pairs of equal centroids; Model Maker's advice is a tenth of the average, which `best` takes."""

MIN_SCORED = 20_000
"""Images that a query scores at least, where partitions searched are left open: about 1.5 ms on one thread."""

MIN_SEARCHED_FRACTION = 0.1
"""Share of the partitions that is searched at least, where left open."""

RECIPE_CODEBOOK_ITERATIONS = 10
"""Model Maker's default for codebooks; for the partitioning it is 12, which is also the configuration's default."""


@dataclass(frozen=True)
class IndexParameters:
    """Resolved parameters; they are recorded in build.json and in the index's USER_INFO.

    Attributes:
      partitions, partitions_searched: leaves of the tree; those that a query searches.
      dims_per_block: dimensions that share one 8-bit code.
      anisotropic_threshold: of anisotropic vector quantization; 0 is plain k-means codes.
      lookup: type of the device's look-up tables.
      partition_iterations, codebook_iterations: of k-means.
      training_sample: vectors that either k-means sees.
      min_partition_size: smaller clusters are replaced while the partitioning is trained.
      compression: of the whole LevelDB table.
    """

    preset: str
    partitions: int
    partitions_searched: int
    dims_per_block: int
    anisotropic_threshold: float
    lookup: Literal["float", "int8"]
    partition_iterations: int
    codebook_iterations: int
    training_sample: int
    min_partition_size: int
    compression: bool
    seed: int

    @property
    def search_fraction(self) -> float:
        """The fraction by which the device is told how many partitions to search.

        The device searches ceil(partitions x fraction), in float32, where s/L can round up to s+1 partitions;
        half a partition less cannot.
        """
        return (self.partitions_searched - 0.5) / self.partitions

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def resolve(config: IndexConfig, images: int, dim: int) -> IndexParameters:
    """Returns the parameters for a corpus of `images` vectors of `dim` dimensions.

    Raises:
      UsageError: more partitions than images, more partitions searched than there are, or blocks wider than
        the embedding.
    """
    partitions = config.partitions or max(1, math.isqrt(images))
    if partitions > images:
        raise UsageError(
            f"index.partitions is {partitions}, but the corpus has {images} images; set it to at most {images}, or "
            f"leave it out for {max(1, math.isqrt(images))} (about the square root of the corpus)"
        )
    searched = config.partitions_searched or _partitions_searched(partitions, images)
    if searched > partitions and config.partitions:
        raise UsageError(
            f"index.partitions_searched is {searched}, but index.partitions is {partitions}; "
            f"set it to at most {partitions}"
        )
    if config.dims_per_block > dim:
        raise UsageError(
            f"index.dims_per_block is {config.dims_per_block}, but embeddings have {dim} dimensions; "
            f"set it to at most {dim}"
        )
    recipe = config.preset == "recipe2022"
    return IndexParameters(
        preset=config.preset,
        partitions=partitions,
        partitions_searched=min(searched, partitions),
        dims_per_block=config.dims_per_block,
        anisotropic_threshold=config.anisotropic_threshold,
        lookup=config.lookup,
        partition_iterations=config.training_iterations,
        codebook_iterations=RECIPE_CODEBOOK_ITERATIONS if recipe else config.training_iterations,
        training_sample=config.training_sample,
        min_partition_size=RECIPE_MIN_PARTITION_SIZE if recipe else max(1, images // partitions // 10),
        compression=config.compression,
        seed=config.seed,
    )


def _partitions_searched(partitions: int, images: int) -> int:
    for_scored = MIN_SCORED * partitions / images
    return min(partitions, math.ceil(max(MIN_SEARCHED_FRACTION * partitions, for_scored)))
