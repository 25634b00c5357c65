"""Parameters of an index, whether configured, set by a preset or found by the tuner."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from searchforge.config import IndexConfig, LutType
from searchforge.errors import UsageError


@dataclass(frozen=True)
class IndexParameters:
    """Parameters that determine size, speed and recall of an index.

    Attributes:
      code_bytes: Bytes per code: 8 bits for each block of dimensions.
      partitions: Number of partitions (leaves of the tree).
      partitions_searched: Number of partitions searched per query.
      lut_type: Element type of the device's look-up tables.
    """

    code_bytes: int
    partitions: int
    partitions_searched: int
    lut_type: LutType

    @property
    def search_fraction(self) -> float:
        """Fraction of partitions to search, as stored in the index.

        The device searches ceil(partitions * fraction) in float32, where the exact fraction s/L can round up to s + 1
        partitions; half a partition less cannot.
        """
        return (self.partitions_searched - 0.5) / self.partitions

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def summary(self) -> str:
        """Human-readable description."""
        return f"{self.code_bytes} bytes per code, {self.partitions_searched} of {self.partitions} partitions searched"


def default_partitions(items: int) -> int:
    """Returns the default number of partitions: about the square root of the number of items."""
    return max(1, math.isqrt(items))


def require_valid_settings(config: IndexConfig, items: int, dim: int) -> None:
    """Raises UsageError if configured parameters contradict the corpus."""
    if config.partitions and config.partitions > items:
        raise UsageError(
            f"index.partitions is {config.partitions}, but the corpus has {items} items; set it to at most {items}, "
            "or omit it"
        )
    if config.code_bytes and config.code_bytes > dim:
        raise UsageError(
            f"index.code_bytes is {config.code_bytes}, but embeddings have {dim} dimensions; set it to at most {dim}"
        )
