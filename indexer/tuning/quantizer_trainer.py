"""Trains the quantizer of a corpus: scans the corpus, fits the query-aware map and tunes the index parameters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.corpus.corpus_scan import ExactNeighbors, exact_search, scan_corpus
from indexer.corpus.queries import QUERY_KINDS, QueryEmbeddings, QueryKind
from indexer.corpus.shard_reader import read_shard
from indexer.corpus.shards import Shard
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_direction import LANDMARKS, QueryDirectionModel
from indexer.quantization.query_map import inverse_transpose, query_aware_map
from indexer.tuning.evaluator import CANDIDATES, CorpusSize, ParameterEvaluator, TradeoffPoint
from indexer.tuning.tuner import infeasible_message, tune
from searchforge.config import IndexConfig
from searchforge.errors import JobError

logger = logging.getLogger(__name__)

_ITEM_QUERIES = 500
"""Number of corpus items that serve as queries, for tuning and again for verification, if there are no texts."""

_PAIRS_PER_QUERY = 10
"""Number of nearest items that each training query is paired with to fit the query direction."""

_PAIRING_SAMPLE = 50_000
"""Maximum number of sampled items among which those nearest items are searched."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GroundTruth:
    """Queries [m, dim] float32, as the encoder returns them, and their exact nearest neighbors."""

    queries: Matrix
    neighbors: ExactNeighbors


class QuantizerTrainer:
    """Trains quantizers for a corpus, which it reads once.

    Args:
      items: Number of live records in the shards.
      queries: Embeddings of texts. If None, corpus items serve as queries and the map is not query-aware.

    Attributes:
      query_kind: Kind of the queries for tuning and verification.
      tuning: Ground truth that parameters are tuned on.
      verification: Ground truth that the tuner does not see.

    Raises:
      UsageError: The corpus contains records that cannot be indexed.
      JobError: A shard is damaged.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        dim: int,
        items: int,
        queries: QueryEmbeddings | None,
        config: IndexConfig,
        threads: int,
    ) -> None:
        self._config = config
        self.query_kind: QueryKind
        if queries and len(queries.tuning) and len(queries.verification):
            self.query_kind = queries.kind
            tuning, verification = queries.tuning, queries.verification
        else:
            self.query_kind = "item"
            info, path = next((info, path) for info, path in shards if info.live)
            stand_ins = np.delete(read_shard(path, dim).vectors, info.dead, axis=0)[: 2 * _ITEM_QUERIES]
            tuning, verification = stand_ins[::2], stand_ins[1::2] if len(stand_ins) > 1 else stand_ins
        all_queries = np.concatenate([tuning, verification])
        scan = scan_corpus(shards, dim, config.training_sample, config.seed, all_queries, CANDIDATES, threads)
        self.tuning = GroundTruth(tuning, scan.neighbors.rows(slice(len(tuning))))
        self.verification = GroundTruth(verification, scan.neighbors.rows(slice(len(tuning), None)))
        training = queries.training if queries and config.query_aware and len(queries.training) else None
        transform = query_aware_map(scan.sample, training)
        query_direction = (
            QueryDirectionModel.identity(dim)
            if training is None
            else _fit_query_direction(scan.sample, training, transform)
        )
        self._evaluator = ParameterEvaluator(
            scan.sample,
            transform,
            query_direction,
            self.tuning.queries,
            self.tuning.neighbors,
            CorpusSize(items, scan.metadata_bytes),
            config,
            threads,
        )

    def train(self, recall: float | None) -> tuple[TradeoffPoint, Quantizer]:
        """Returns the point that is expected to reach a recall@10, and its quantizer.

        Args:
          recall: Required recall@10; None asks for the highest within the limits.

        Raises:
          JobError: No parameters reach the recall within the limits; the message shows the nearest ones.
        """
        goal = "the highest recall@10" if recall is None else f"recall@10 {recall:.3f}"
        logger.info(f"tuning for {goal} on {len(self.tuning.queries):,} {QUERY_KINDS[self.query_kind]}")
        config = self._config.model_copy(update={"recall_at_10": recall})
        chosen = tune(self._evaluator, config)
        if chosen is None:
            raise JobError(infeasible_message(self.tradeoff, config, self._evaluator.size))
        return chosen, self._evaluator.quantizer(chosen.parameters)

    @property
    def tradeoff(self) -> list[TradeoffPoint]:
        """All points that were evaluated."""
        return self._evaluator.tradeoff


def _fit_query_direction(sample: Matrix, queries: Matrix, transform: Matrix) -> QueryDirectionModel:
    """Fits the model to pairs of each training query and its nearest items in the sample."""
    landmarks, sample = sample[:LANDMARKS], sample[:_PAIRING_SAMPLE]
    nearest = exact_search(queries, sample, _PAIRS_PER_QUERY)
    valid = nearest.items >= 0
    paired_queries = np.repeat(queries, valid.sum(axis=1), axis=0)
    vectors = sample[nearest.items[valid]]
    mapped_queries = paired_queries @ inverse_transpose(transform).T
    return QueryDirectionModel.fit(vectors, vectors @ transform.T, mapped_queries, landmarks)
