"""Reference searcher: reproduces the Task Library's search of an on-device index, on arrays and bit by bit.

It follows tensorflow_lite_support (cc/task/processor/embedding_searcher.cc, scann_ondevice/cc/core/partitioner.cc,
processor.cc, index_table_sum.h, top_n_amortized_constant.h) as built for x86-64: float32 throughout, sums in the same
order as Eigen's matrix-vector product, no fused multiply-add. Other architectures may round differently.

The library does not specify which of several items at the same distance it returns, nor their order. Here the item
that is scanned first wins: partitions are scanned nearest first, each in device order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import numpy.typing as npt

from indexer.compiled_code import compiled
from searchforge.config import LutType

_LEVELS: dict[LutType, int] = {"float": 0, "int16": 2047, "int8": 255}
"""Largest table value by look-up type: 32 of them add up within 16 bits. Float tables are not quantized."""

_SUMMED = 32
"""Number of blocks whose table entries are summed before dequantization."""

_ROWS_OF_WIDE_PANELS = 8000
"""Number of rows up to which Eigen sums products of 128 or more columns in panels of 16 columns; beyond, of 4."""


def partitions_searched(partitions: int, search_fraction: float) -> int:
    """Returns the number of partitions that a device searches; it stores and multiplies the fraction in float32."""
    return min(partitions, math.ceil(np.float32(partitions) * np.float32(search_fraction)))


class ReferenceSearcher:
    """Searches an index of n items in device order, partition by partition.

    Args:
      centroids: [partitions, dim] float32.
      codebooks: [256, dimensions of the block] float32 for each block; the blocks' dimensions add up to dim.
      codes: [n, blocks] uint8.
      partition_sizes: [partitions] int64, number of items in each partition; they add up to n.
      lut_type: Element type of the look-up tables.
      threads: Number of queries searched concurrently; by default the number of cores available to this process.

    Raises:
      ValueError: The shapes or sizes disagree, or the look-up type is unknown.
    """

    def __init__(
        self,
        centroids: npt.NDArray[np.float32],
        codebooks: Sequence[npt.NDArray[np.float32]],
        codes: npt.NDArray[np.uint8],
        partition_sizes: npt.NDArray[np.integer],
        lut_type: LutType,
        threads: int | None = None,
    ) -> None:
        widths = [book.shape[1] for book in codebooks]
        if len(partition_sizes) != len(centroids) or sum(partition_sizes) != len(codes):
            raise ValueError(
                f"{len(partition_sizes)} partitions of {sum(partition_sizes)} items, "
                f"expected {len(centroids)} of {len(codes)}"
            )
        if sum(widths) != centroids.shape[1] or len(widths) != codes.shape[1]:
            raise ValueError(
                f"{len(widths)} codebooks of {sum(widths)} dimensions, "
                f"expected {codes.shape[1]} of {centroids.shape[1]}"
            )
        if lut_type not in get_args(LutType):
            raise ValueError(f"look-up type {lut_type!r}, expected one of {', '.join(get_args(LutType))}")
        self.partition_sizes = np.asarray(partition_sizes, np.int64)
        self._centroids = np.ascontiguousarray(centroids.T, np.float32)
        self._entries = np.ascontiguousarray(np.concatenate(codebooks, axis=1).T, np.float32)
        self._block_ends = np.cumsum(widths)
        self._codes = np.ascontiguousarray(codes, np.uint8)
        self._offsets = np.concatenate([[0], np.cumsum(self.partition_sizes)])
        self._levels = _LEVELS[lut_type]
        self._threads = threads or len(os.sched_getaffinity(0))

    def route(self, queries: npt.NDArray[np.float32], searched: int) -> npt.NDArray[np.int64]:
        """Returns the `searched` nearest partitions [m, searched] of queries [m, dim], nearest first.

        The nearest partition has the largest dot product; of equal ones, the smaller number. Exact if
        partitions + dim is at least 19 (below, Eigen sums in another order).
        """
        queries = self._checked(queries)
        distances = np.empty((len(queries), len(self.partition_sizes)), np.float32)
        self._parallel(len(queries), lambda part: _route(queries[part], self._centroids, distances[part]))
        return np.argsort(distances, axis=1, kind="stable")[:, :searched]

    def search(
        self, queries: npt.NDArray[np.float32], k: int, searched: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Searches the `searched` nearest partitions of each query.

        Args:
          queries: [m, dim] float32, mapped, as the searcher's encoder returns them.

        Returns:
          Items [m, k] int64 in device order, best first, and distances [m, k] float32: negated approximate dot
          products. Padded with -1 and infinity if the partitions searched hold fewer than k items.
        """
        items, distances = self.sweep(queries, k, [searched])
        return items[0], distances[0]

    def sweep(
        self, queries: npt.NDArray[np.float32], k: int, searched: Sequence[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Searches with several numbers of partitions at the cost of the largest.

        Args:
          searched: Numbers of partitions searched, ascending.

        Returns:
          Items and distances as `search` returns them, [len(searched), m, k].

        Raises:
          ValueError: k is not positive, or `searched` does not ascend within 1..partitions.
        """
        steps = np.asarray(searched, np.int64)
        most = len(self.partition_sizes)
        if k < 1 or not len(steps) or steps[0] < 1 or steps[-1] > most or np.any(np.diff(steps) <= 0):
            raise ValueError(f"k {k} and searched {searched}, expected 1 or more and ascending numbers in 1..{most}")
        queries = self._checked(queries)
        routes = self.route(queries, int(steps[-1]))
        items = np.empty((len(steps), len(queries), k), np.int64)
        distances = np.empty((len(steps), len(queries), k), np.float32)
        self._parallel(
            len(queries),
            lambda part: _search(
                queries[part],
                routes[part],
                self._entries,
                self._block_ends,
                self._levels,
                self._codes,
                self._offsets,
                steps,
                items[:, part],
                distances[:, part],
            ),
        )
        return items, distances

    def _checked(self, queries: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if queries.ndim != 2 or queries.shape[1] != len(self._centroids) or queries.dtype != np.float32:
            raise ValueError(f"queries {queries.dtype} {queries.shape}, expected float32 [m, {len(self._centroids)}]")
        return np.ascontiguousarray(queries)

    def _parallel(self, count: int, function) -> None:  # type: ignore[no-untyped-def]
        """Calls function(slice) concurrently for slices that cover `count` queries; compiled loops release the GIL."""
        size = max(1, -(-count // (4 * self._threads)))
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(function, (slice(start, start + size) for start in range(0, count, size))))


@compiled
def _subtract_product(
    matrix: npt.NDArray[np.float32],
    vector: npt.NDArray[np.float32],
    scratch: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
) -> None:
    """Writes -(vector @ matrix) into out; matrix: [columns, rows], the transpose of Eigen's."""
    columns, rows = matrix.shape
    panel = columns if columns < 128 else 16 if rows < _ROWS_OF_WIDE_PANELS else 4
    out[:] = 0
    for start in range(0, columns, panel):
        scratch[:] = 0
        for column in range(start, min(start + panel, columns)):
            for row in range(rows):
                scratch[row] += matrix[column, row] * vector[column]
        out -= scratch


@compiled
def _route(
    queries: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32], distances: npt.NDArray[np.float32]
) -> None:
    """Writes the distances [m, partitions] between queries and centroids; centroids: [dim, partitions]."""
    scratch = np.empty(centroids.shape[1], np.float32)
    for query in range(len(queries)):
        _subtract_product(centroids, queries[query], scratch, distances[query])


@compiled
def _fill_table(
    query: npt.NDArray[np.float32],
    entries: npt.NDArray[np.float32],
    block_ends: npt.NDArray[np.int64],
    levels: int,
    table: npt.NDArray[np.float32],
) -> tuple[np.float32, np.float32]:
    """Writes the look-up table [blocks, 256] of a query; integers in 0..levels unless levels is 0.

    Returns:
      Scale and offset: a sum of m table entries represents the distance scale * sum + offset * m.
    """
    scratch = np.empty(table.shape[1], np.float32)
    start = 0
    for block in range(len(block_ends)):
        end = block_ends[block]
        _subtract_product(entries[start:end], query[start:end], scratch, table[block])
        start = end
    if levels == 0:
        return np.float32(1), np.float32(0)
    low, high = table.min(), table.max()
    to_level = np.float32(levels) / max(high - low, np.finfo(np.float32).eps)
    for block in range(table.shape[0]):
        for entry in range(table.shape[1]):
            table[block, entry] = np.floor(to_level * (table[block, entry] - low))
    scale = (high - low) / np.float32(levels)
    return scale, low + scale / np.float32(2)


@compiled
def _add_entries(
    table: npt.NDArray[np.float32],
    codes: npt.NDArray[np.uint8],
    rows: tuple[int, int, int, int],
    start: int,
    end: int,
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Returns the sums of four items' table entries over blocks start..end; four hide the latency of additions."""
    first, second, third, fourth = rows
    a = b = c = d = np.float32(0)
    for block in range(start, end):
        entries = table[block]
        a += entries[codes[first, block]]
        b += entries[codes[second, block]]
        c += entries[codes[third, block]]
        d += entries[codes[fourth, block]]
    return a, b, c, d


@compiled
def _search(
    queries: npt.NDArray[np.float32],
    routes: npt.NDArray[np.int64],
    entries: npt.NDArray[np.float32],
    block_ends: npt.NDArray[np.int64],
    levels: int,
    codes: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    items: npt.NDArray[np.int64],
    distances: npt.NDArray[np.float32],
) -> None:
    """Writes the best items and their distances [steps, m, k] after the first `steps` partitions of each route."""
    blocks = codes.shape[1]
    k = items.shape[2]
    table = np.empty((blocks, entries.shape[1]), np.float32)
    best, best_distances = np.empty(k, np.int64), np.empty(k, np.float32)
    scores = np.empty(4, np.float32)
    for query in range(len(queries)):
        scale, offset = _fill_table(queries[query], entries, block_ends, levels, table)
        best[:] = -1
        best_distances[:] = np.inf
        step = 0
        for scanned in range(routes.shape[1]):
            partition = routes[query, scanned]
            last = offsets[partition + 1] - 1
            for item in range(offsets[partition], last + 1, 4):
                rows = item, min(item + 1, last), min(item + 2, last), min(item + 3, last)
                scores[:] = 0
                for start in range(0, blocks, _SUMMED):
                    end = min(start + _SUMMED, blocks)
                    sums = _add_entries(table, codes, rows, start, end)
                    for i in range(4):
                        # For a float table, the scale of 1 and the offset of 0 change no bit.
                        scores[i] += scale * sums[i] + np.float32(end - start) * offset
                for i in range(min(4, last + 1 - item)):
                    if scores[i] < best_distances[k - 1]:
                        place = k - 1
                        while place > 0 and scores[i] < best_distances[place - 1]:
                            best[place], best_distances[place] = best[place - 1], best_distances[place - 1]
                            place -= 1
                        best[place], best_distances[place] = item + i, scores[i]
            if scanned + 1 == steps[step]:
                items[step, query] = best
                distances[step, query] = best_distances
                step += 1
