"""Estimates recall, size and latency of an index for given parameters, without building it.

Recall is measured on the exact CANDIDATES nearest neighbors of each tuning query, and only these items are encoded.
An item that ranks lower rarely overtakes them, so recall among the candidates is slightly above recall in the whole
corpus. The build corrects the difference once the whole index is encoded (indexer.train_or_reuse).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.corpus.corpus_scan import SCORE_TOLERANCE, ExactNeighbors
from indexer.quantization.block_allocation import block_widths
from indexer.quantization.codebooks import train_codebooks
from indexer.quantization.codes import decode
from indexer.quantization.partitions import PartitionAssigner, train_partitions
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_direction import QueryDirectionModel
from indexer.quantization.query_map import inverse_transpose
from indexer.tuning.cost_model import payload_bytes, search_ms
from indexer.tuning.parameter_grid import searched_steps
from indexer.tuning.parameters import IndexParameters
from searchforge.config import IndexConfig

CANDIDATES = 100
"""Number of exact nearest neighbors per tuning query that parameters are evaluated on."""

K = 10
"""Number of hits that recall is tuned for."""

_CODEBOOK_SAMPLE = 50_000
"""Maximum number of vectors that codebooks are trained on; more gain almost nothing."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TradeoffPoint:
    """One point of the trade-off between recall, size and latency.

    Attributes:
      recall: Recall@10 among the candidates, mean over the tuning queries.
      partition_recall: Share of the exact top 10 that lies in the partitions searched.
      bytes_per_image: Size of the index without metadata, per item.
      search_ms: Expected search time (indexer.tuning.cost_model).
    """

    parameters: IndexParameters
    recall: float
    partition_recall: float
    bytes_per_image: float
    search_ms: float

    @property
    def summary(self) -> str:
        """Human-readable description."""
        return (
            f"recall@10 {self.recall:.3f}, {self.bytes_per_image:.0f} bytes per item, {self.search_ms:.2f} ms per "
            f"search ({self.parameters.summary})"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **self.parameters.to_json(),
            "recall_at_10": round(self.recall, 4),
            "partition_recall_at_10": round(self.partition_recall, 4),
            "bytes_per_image": round(self.bytes_per_image, 2),
            "search_ms": round(self.search_ms, 3),
        }


@dataclass(frozen=True)
class CorpusSize:
    """Size of a corpus: its number of items and the total bytes of their metadata."""

    items: int
    metadata_bytes: int


@dataclass(frozen=True)
class _Partitioning:
    """Trained partitions and their relation to the tuning queries.

    Attributes:
      clusters: [partitions, dim] float32.
      ranks: [m, CANDIDATES] int64, rank of each candidate's partition among those that its query visits in order.
      scored: [partitions] float64, expected number of items in the first 1, 2, ... partitions that a query visits.
    """

    clusters: Matrix
    ranks: npt.NDArray[np.int64]
    scored: npt.NDArray[np.float64]


class ParameterEvaluator:
    """Evaluates index parameters; caches the partitions and codebooks that it trains.

    Args:
      sample: [n, dim] float32, sampled corpus vectors.
      transform: [dim, dim] float32, the query-aware map.
      queries: [m, dim] float32, tuning queries.
      neighbors: Exact CANDIDATES nearest neighbors of the queries.
    """

    def __init__(
        self,
        sample: Matrix,
        transform: Matrix,
        query_direction: QueryDirectionModel,
        queries: Matrix,
        neighbors: ExactNeighbors,
        size: CorpusSize,
        config: IndexConfig,
        threads: int,
    ) -> None:
        self._sample, self._transform, self._query_direction = sample, transform, query_direction
        self._mapped = sample[:_CODEBOOK_SAMPLE] @ transform.T
        self._variances = np.var(sample @ transform.T, axis=0, dtype=np.float64)
        self._queries, self._neighbors = queries, neighbors
        self.size, self._config, self._threads = size, config, threads
        self._valid = neighbors.items >= 0
        _, first, rows = np.unique(neighbors.items, return_index=True, return_inverse=True)
        self._candidate_rows = rows.reshape(neighbors.items.shape)
        self._candidates = neighbors.vectors.reshape(-1, neighbors.vectors.shape[-1])[first]
        self._partitionings: dict[int, _Partitioning] = {}
        self._codebooks: dict[int, tuple[Matrix, ...]] = {}
        self._scores: dict[int, Matrix] = {}
        self._points: dict[tuple[int, int], list[TradeoffPoint]] = {}

    @property
    def dim(self) -> int:
        return int(self._sample.shape[1])

    @property
    def tradeoff(self) -> list[TradeoffPoint]:
        """All points evaluated so far, ascending by code size, partitions and partitions searched."""
        return [point for key in sorted(self._points) for point in self._points[key]]

    def points(self, code_bytes: int, partitions: int) -> list[TradeoffPoint]:
        """Returns one point for each number of partitions searched, ascending."""
        if (code_bytes, partitions) not in self._points:
            self._points[code_bytes, partitions] = self._evaluate(code_bytes, partitions)
        return self._points[code_bytes, partitions]

    def quantizer(self, parameters: IndexParameters) -> Quantizer:
        """Returns the quantizer for these parameters."""
        return self._quantizer(parameters.code_bytes, self._partitioning(parameters.partitions).clusters)

    def _evaluate(self, code_bytes: int, partitions: int) -> list[TradeoffPoint]:
        partitioning = self._partitioning(partitions)
        scores, ranks = self._candidate_scores(code_bytes), partitioning.ranks
        exact = self._neighbors.scores
        count = min(K, int(self._valid[0].sum()))
        relevant = self._valid & (exact >= exact[:, count - 1 : count] - SCORE_TOLERANCE)
        points = []
        for searched in searched_steps(self._config, partitions):
            reached = np.where(self._valid & (ranks < searched), scores, -np.inf)
            best = np.argpartition(-reached, min(count, reached.shape[1]) - 1, axis=1)[:, :count]
            found = np.take_along_axis(relevant & np.isfinite(reached), best, axis=1).sum(axis=1) / count
            within = (relevant & (ranks < searched)).sum(axis=1).clip(max=count) / count
            parameters = IndexParameters(code_bytes, partitions, searched, self._config.lut_type)
            points.append(
                TradeoffPoint(
                    parameters,
                    float(found.mean()),
                    float(within.mean()),
                    payload_bytes(self.size.items, self.dim, parameters) / self.size.items,
                    search_ms(self.dim, parameters, float(partitioning.scored[searched - 1])),
                )
            )
        return points

    def _partitioning(self, partitions: int) -> _Partitioning:
        """Returns partitions trained on the sample."""
        if partitions not in self._partitionings:
            config = self._config
            iterations = max(1, config.training_iterations // 2)  # clusters converge faster than codebooks
            clusters = train_partitions(self._sample, partitions, iterations, config.seed)
            assigner = PartitionAssigner(clusters)
            sizes = np.bincount(assigner.assign(self._sample), minlength=partitions)
            route = np.argsort(-(self._queries @ clusters.T), axis=1, kind="stable")
            ranks = np.empty_like(route)
            np.put_along_axis(ranks, route, np.arange(partitions)[None, :], axis=1)
            assigned = assigner.assign(self._candidates).astype(np.int64)[self._candidate_rows]
            scored = np.cumsum(sizes[route], axis=1).mean(axis=0) * (self.size.items / len(self._sample))
            self._partitionings[partitions] = _Partitioning(
                clusters, np.take_along_axis(ranks, assigned, axis=1), scored
            )
        return self._partitionings[partitions]

    def _quantizer(self, code_bytes: int, clusters: Matrix) -> Quantizer:
        if code_bytes not in self._codebooks:
            widths = block_widths(self._variances, code_bytes)
            iterations, seed = self._config.training_iterations, self._config.seed
            self._codebooks[code_bytes] = tuple(train_codebooks(self._mapped, widths, iterations, seed, self._threads))
        codebooks = self._codebooks[code_bytes]
        return Quantizer(self._transform, clusters, codebooks, self._query_direction, self._config.anisotropic_weight)

    def _candidate_scores(self, code_bytes: int) -> Matrix:
        """Returns the scores [m, CANDIDATES] of the candidates as approximated by their codes."""
        if code_bytes not in self._scores:
            quantizer = self._quantizer(code_bytes, self._sample[:0])
            with ThreadPoolExecutor(self._threads) as pool:
                parts = np.array_split(self._candidates, 4 * self._threads)
                codes = np.concatenate(list(pool.map(lambda part: quantizer.codes(part), parts)))
            decoded = decode(codes, quantizer.codebooks)
            mapped = self._queries @ inverse_transpose(self._transform).T
            scores = np.empty(self._candidate_rows.shape, np.float32)
            for query, rows in enumerate(self._candidate_rows):
                scores[query] = decoded[rows] @ mapped[query]
            self._scores[code_bytes] = scores
        return self._scores[code_bytes]
