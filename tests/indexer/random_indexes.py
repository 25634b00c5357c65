"""Small indexes of random codes, one for each way in which indexes differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from indexer.encoding.reference import partitions_searched
from searchforge.config import LutType


@dataclass(frozen=True)
class Case:
    """An index of random codes."""

    lut_type: LutType
    widths: list[int]
    partitions: int = 40
    search_fraction: float = 0.16
    count: int = 3_000
    k: int = 10
    filled: float = 1.0  # share of partitions that are not empty
    copies: int = 1  # number of items with the same code
    centroid_spread: float = 1.0

    @property
    def searched(self) -> int:
        return partitions_searched(self.partitions, self.search_fraction)


UNEVEN = [1, 1, 2, 3, 5, 7, 9, 20]
CASES = {
    "float, even blocks": Case("float", [2] * 64),
    "int16, even blocks": Case("int16", [2] * 64),
    "int8, even blocks": Case("int8", [2] * 64),
    "float, uneven blocks": Case("float", UNEVEN),
    "int16, uneven blocks, a last group of one": Case("int16", [*UNEVEN * 4, 3]),
    "int8, uneven blocks, many hits": Case("int8", UNEVEN, k=40),
    "one partition": Case("float", [4] * 32, partitions=1, count=1_000),
    "one item": Case("float", [4] * 32, partitions=1, count=1),
    "all partitions": Case("float", UNEVEN, search_fraction=1.0, count=300),
    "wide and narrow blocks": Case("float", [129, 1]),
    "nearest partitions by rounding": Case("float", UNEVEN, centroid_spread=1e-7),
    "by rounding of 128 dimensions": Case("float", [16] * 8, partitions=7_999, centroid_spread=1e-7),
    "by rounding of 128 dimensions, more partitions": Case("float", [16] * 8, partitions=8_000, centroid_spread=1e-7),
    "empty partitions, fewer items than hits": Case("float", UNEVEN, count=200, k=50, filled=0.3),
    "the same for int8": Case("int8", UNEVEN, count=200, k=50, filled=0.3),
    "equal items": Case("float", UNEVEN, copies=30),
    "a fraction that float32 rounds up": Case("float", UNEVEN, partitions=26, search_fraction=7 / 26),
}


def make_arrays(case: Case) -> dict[str, np.ndarray]:
    """Returns the arguments of lookup_encoder.write_index."""
    rng = np.random.default_rng(1)
    dim = sum(case.widths)
    partitions = rng.choice(case.partitions, max(1, int(case.filled * case.partitions)), replace=False)
    assignments = np.sort(rng.choice(partitions, case.count)).astype(np.uint32)
    center, spread = rng.normal(size=dim), rng.normal(size=(case.partitions, dim))
    codes = rng.integers(0, 256, (case.count, len(case.widths)), np.uint8)
    return {
        "centroids": (center + case.centroid_spread * spread).astype(np.float32),
        "entries": rng.normal(size=(256, dim)).astype(np.float32),
        "widths": np.array(case.widths),
        "codes": np.repeat(codes[:: case.copies], case.copies, axis=0)[: case.count],
        "assignments": assignments,
    }


def make_queries(case: Case, count: int) -> np.ndarray:
    """Returns [count, dim] float32."""
    queries = np.random.default_rng(2).normal(size=(count, sum(case.widths))).astype(np.float32)
    queries[0] = 0  # all distances are equal
    return queries


def codebooks(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    return np.split(arrays["entries"], np.cumsum(arrays["widths"])[:-1], axis=1)


def sizes(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.bincount(arrays["assignments"], minlength=len(arrays["centroids"]))
