"""Trains the quantizer of a corpus: surveys it, fits the map, and lets the tuner find settings on real queries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.corpus.corpus_scan import Answers, exact_search, survey
from indexer.corpus.queries import TextQueries
from indexer.corpus.shard_reader import read_shard
from indexer.corpus.shards import Shard
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_direction import LANDMARKS, Leaning
from indexer.quantization.query_map import inverse_transpose, query_aware_map
from indexer.tuning.tuner import CANDIDATES, Explorer, Point, Size, explore, nearest_misses
from searchforge.config import IndexConfig
from searchforge.errors import JobError

logger = logging.getLogger(__name__)

_CORPUS_QUERIES = 500
"""Items that stand for queries where there are no captions."""

_PAIRED, _PAIRED_SAMPLE = 10, 50_000
"""Best hits of each training query among items, from which it is learned where the queries of an item lie."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Questions:
    """Queries [m, dim] float32, as encoded, and their exact answers."""

    queries: Matrix
    answers: Answers


class Training:
    """Everything that a corpus' quantizers are trained from; one pass over the shards.

    Args:
      items: live records of the shards.
      queries: captions; None: items of the corpus stand for them, and nothing is known of how queries lie.

    Attributes:
      query_kind: `caption` or `item`.
      tuning, verification: what recall is measured on; the tuner does not see the second.

    Raises:
      UsageError: the corpus must not be indexed.
      JobError: a shard is damaged.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        dim: int,
        items: int,
        queries: TextQueries | None,
        config: IndexConfig,
        threads: int,
    ) -> None:
        self._config = config
        if queries and len(queries.tuning) and len(queries.verification):
            self.query_kind = "caption"
            asked = (queries.tuning, queries.verification)
        else:
            self.query_kind = "item"
            info, path = next((info, path) for info, path in shards if info.live)
            stand_ins = np.delete(read_shard(path, dim).vectors, info.dead, axis=0)[: 2 * _CORPUS_QUERIES]
            asked = (stand_ins[::2], stand_ins[1::2] if len(stand_ins) > 1 else stand_ins)
        both = np.concatenate(asked)
        found = survey(shards, dim, config.training_sample, config.seed, both, CANDIDATES, threads)
        first = len(asked[0])
        self.tuning = Questions(asked[0], found.answers.rows(slice(first)))
        self.verification = Questions(asked[1], found.answers.rows(slice(first, None)))
        known = queries.training if queries and config.query_aware and len(queries.training) else None
        transform = query_aware_map(found.sample, known)
        leaning = Leaning.own(dim) if known is None else _fit_leaning(found.sample, known, transform)
        self._explorer = Explorer(
            found.sample,
            transform,
            leaning,
            self.tuning.queries,
            self.tuning.answers,
            Size(items, found.metadata_bytes),
            config,
            threads,
        )

    def choose(self, recall: float | None) -> tuple[Point, Quantizer]:
        """Returns the setting that the tuner expects to reach a recall@10, and its quantizer.

        Raises:
          JobError: no setting reaches it within the limits; the message shows the nearest that do.
        """
        logger.info(
            f"tune for recall@10 of {recall or 'any'} on {len(self.tuning.queries):,} queries ({self.query_kind}s)"
        )
        config = self._config.model_copy(update={"recall_at_10": recall})
        chosen = explore(self._explorer, config)
        if chosen is None:
            raise JobError(nearest_misses(self.curve, config, self._explorer.size))
        return chosen, self._explorer.quantizer(chosen.setting)

    @property
    def curve(self) -> list[Point]:
        """Every point that was tried."""
        return self._explorer.curve


def _fit_leaning(sample: Matrix, queries: Matrix, transform: Matrix) -> Leaning:
    landmarks, sample = sample[:LANDMARKS], sample[:_PAIRED_SAMPLE]
    best = exact_search(queries, sample, _PAIRED)
    known = best.items >= 0
    asked = np.repeat(queries, known.sum(axis=1), axis=0)
    vectors = sample[best.items[known]]
    return Leaning.fit(vectors, vectors @ transform.T, asked @ inverse_transpose(transform).T, landmarks)
