"""Grid of index parameters that the tuner tries: code sizes, numbers of partitions and of partitions searched."""

from __future__ import annotations

from indexer.tuning.parameters import default_partitions
from searchforge.config import IndexConfig

MAX_UNPARTITIONED_ITEMS = 5_000
"""Largest corpus for which a single partition, and so an exhaustive scan, is tried."""

_MIN_MEAN_ITEMS = 4
"""Minimum mean number of items per partition."""

_PARTITION_FACTORS = (1.0, 4.0)
"""Numbers of partitions to try, as multiples of the square root of the corpus size."""

_SEARCHED_RATIO = 1.1
"""Ratio of consecutive numbers of partitions searched."""

_CODE_SIZES = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 256)
"""Code sizes to try, in bytes."""


def code_sizes(config: IndexConfig, dim: int) -> list[int]:
    """Returns the code sizes to try, in bytes, ascending."""
    return [config.code_bytes] if config.code_bytes else [*(size for size in _CODE_SIZES if size < dim), dim]


def partition_grid(config: IndexConfig, items: int) -> list[int]:
    """Returns the numbers of partitions to try, ascending; none is below a configured `partitions_searched`."""
    if config.partitions:
        return [config.partitions]
    most = max(1, min(items, config.training_sample) // _MIN_MEAN_ITEMS)
    grid = {min(most, max(1, int(factor * default_partitions(items)))) for factor in _PARTITION_FACTORS}
    grid |= {1} if items <= MAX_UNPARTITIONED_ITEMS else set()
    least = min(config.partitions_searched or 1, max(grid))
    return sorted(partitions for partitions in grid if partitions >= least)


def searched_steps(config: IndexConfig, partitions: int) -> list[int]:
    """Returns the numbers of partitions searched to try, ascending."""
    if config.partitions_searched:
        return [min(config.partitions_searched, partitions)]
    steps = [1]
    while steps[-1] < partitions:
        steps.append(min(partitions, max(steps[-1] + 1, int(steps[-1] * _SEARCHED_RATIO))))
    return steps
