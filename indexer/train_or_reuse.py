"""Encodes a corpus with an earlier build's quantizer, the 2022 recipe's, or one that is tuned for it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.corpus.queries import QUERY_KINDS, QueryTexts, embed_queries
from indexer.corpus.shards import Shard, open_corpus
from indexer.encoding.drift import index_statistics, measure_drift, share_changed
from indexer.encoding.encoded_shards import EncodedCorpus
from indexer.encoding.local_run import encode_corpus
from indexer.encoding.recall import choose_partitions_searched, measure_recall
from indexer.encoding.reuse import ReusableBuild
from indexer.quantization.quantizer import Quantizer
from indexer.stopwatch import Stopwatch
from indexer.tuning.cost_model import file_bytes, payload_bytes
from indexer.tuning.parameters import IndexParameters
from indexer.tuning.quantizer_trainer import QuantizerTrainer
from indexer.tuning.recipe2022 import recipe_quantizer
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import IndexConfig
from searchforge.errors import JobError

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Maximum number of builds, each with a higher target, until the whole index reaches the required recall."""

_RECALL_MARGIN = 0.002
"""Recall added to the target of the next attempt, beyond what the last one fell short."""


@dataclass(frozen=True)
class IndexContent:
    """An encoded corpus with its quantizer and parameters.

    Attributes:
      training: Entry of build.json: the embedding run that the quantizer was trained on, statistics, measured recall.
      tradeoff: Points of the trade-off curve as JSON; empty if nothing was tuned.
    """

    quantizer: Quantizer
    parameters: IndexParameters
    encoded: EncodedCorpus
    training: dict[str, Any]
    tradeoff: list[dict[str, Any]] = field(default_factory=list)


class CorpusEncoder:
    """Encodes an embedding run; trains a quantizer unless an earlier one still fits.

    Args:
      texts: Texts to tune with, or None.
      text_encoder: TFLite file that embeds the texts; needed if there are any.
    """

    def __init__(
        self,
        config: IndexConfig,
        workspace: Workspace,
        manifest: Manifest,
        texts: QueryTexts | None,
        text_encoder: Path | None,
        stopwatch: Stopwatch,
    ) -> None:
        self._config, self._workspace, self._manifest = config, workspace, manifest
        self._texts, self._text_encoder = texts, text_encoder
        self._threads = len(os.sched_getaffinity(0))
        self._time = stopwatch.step

    def encode(self, earlier: ReusableBuild | None, metadata_file: Path) -> IndexContent:
        """Encodes the corpus, with the quantizer of `earlier` unless the corpus has drifted too far from it."""
        with self._time("open"):
            # Workers of a Beam runner read the shards themselves; no machine needs room for all embeddings.
            shards = open_corpus(self._workspace, self._manifest, download=not self._config.runner)
        if earlier:
            content = None if self._has_better_queries(earlier) else self._encode_reused(earlier, shards, metadata_file)
            if content:
                return content
        if self._config.preset == "recipe2022":
            return self._encode_recipe(shards, metadata_file)
        return self._encode_tuned(shards, metadata_file)

    def _has_better_queries(self, earlier: ReusableBuild) -> bool:
        """Returns whether there are queries of a better kind than those that an earlier index was tuned with."""
        before = earlier.tuning.get("query_kind")
        if self._texts is None or before is None:
            return False
        kinds = list(QUERY_KINDS)
        better = kinds.index(self._texts.kind) < kinds.index(before)
        if better:
            logger.info(
                f"retraining: the quantizer was tuned with {QUERY_KINDS[before]}; now there are "
                f"{QUERY_KINDS[self._texts.kind]}"
            )
        return better

    def _encode_reused(self, earlier: ReusableBuild, shards: list[Shard], metadata_file: Path) -> IndexContent | None:
        encoded = self._encode(earlier.quantizer, shards, metadata_file)
        exceeded = self._exceeded_limit(earlier.parameters, encoded)
        if exceeded:
            logger.info(f"retraining: at {earlier.parameters.summary} the corpus exceeds {exceeded}")
            return None
        changed = share_changed(earlier.trained_on, self._manifest)
        statistics = index_statistics(encoded, earlier.quantizer.codebooks)
        drift = measure_drift(earlier.statistics, statistics, changed)
        if drift["drift"] > self._config.max_drift:
            logger.info(f"retraining: drift {drift['drift']:.3f} exceeds index.max_drift {self._config.max_drift}")
            return None
        logger.info(f"reusing the quantizer trained on embeddings {earlier.trained_on.id}: drift {drift['drift']:.3f}")
        training = {
            "embeddings": earlier.trained_on.id,
            "statistics": earlier.statistics,
            "tuning": earlier.tuning,
            "drift": drift,
        }
        return IndexContent(earlier.quantizer, earlier.parameters, encoded, training)

    def _exceeded_limit(self, parameters: IndexParameters, encoded: EncodedCorpus) -> str | None:
        """Returns the configuration key of the size limit that the corpus exceeds, or None."""
        records = self._manifest.records
        payload = payload_bytes(records, self._manifest.dim, parameters)
        for name, value in (
            ("max_bytes_per_image", payload / records),
            ("max_index_size", file_bytes(payload, records, encoded.metadata_bytes)),
        ):
            limit = getattr(self._config, name)
            if limit is not None and value > limit:
                return f"index.{name}"
        return None

    def _encode_recipe(self, shards: list[Shard], metadata_file: Path) -> IndexContent:
        with self._time("train"):
            quantizer, parameters = recipe_quantizer(
                shards,
                self._manifest.dim,
                self._manifest.records,
                self._config,
                self._threads,
                metadata_file.parent,
            )
        logger.info(f"indexing {self._manifest.records:,} images with the 2022 recipe: {parameters.summary}")
        encoded = self._encode(quantizer, shards, metadata_file)
        return IndexContent(quantizer, parameters, encoded, self._training_entry(quantizer, encoded, {}))

    def _encode_tuned(self, shards: list[Shard], metadata_file: Path) -> IndexContent:
        config, records = self._config, self._manifest.records
        queries = None
        if self._texts:
            assert self._text_encoder
            with self._time("embed_queries"):
                queries = embed_queries(self._text_encoder, self._texts, self._workspace.cache("queries"))
        with self._time("survey"):
            trainer = QuantizerTrainer(shards, self._manifest.dim, records, queries, config, self._threads)
        target = config.recall_at_10
        for _ in range(_ATTEMPTS):
            with self._time("tune"):
                point, quantizer = trainer.train(target)
            logger.info(f"  expected: {point.summary}")
            encoded = self._encode(quantizer, shards, metadata_file)
            with self._time("verify"):
                parameters, reached = choose_partitions_searched(
                    quantizer, encoded, point.parameters, trainer.tuning, config
                )
            if target is None or config.recall_at_10 is None or reached >= config.recall_at_10:
                break
            target += config.recall_at_10 - reached + _RECALL_MARGIN
        else:
            raise JobError(
                f"the index reaches recall@10 of {reached:.3f} at {parameters.summary}, below the required "
                f"{config.recall_at_10}; lower index.recall_at_10 or raise index.max_latency_ms"
            )
        with self._time("verify"):
            recall = {
                name: measure_recall(quantizer, encoded, parameters, ground_truth)
                for name, ground_truth in (("tuning", trainer.tuning), ("verification", trainer.verification))
            }
        tuning = {"query_kind": trainer.query_kind, "recall_at_10": recall}
        training = self._training_entry(quantizer, encoded, tuning)
        return IndexContent(quantizer, parameters, encoded, training, [point.to_json() for point in trainer.tradeoff])

    def _training_entry(self, quantizer: Quantizer, encoded: EncodedCorpus, tuning: dict[str, Any]) -> dict[str, Any]:
        return {
            "embeddings": self._manifest.id,
            "statistics": index_statistics(encoded, quantizer.codebooks),
            "tuning": tuning,
            "drift": None,
        }

    def _encode(self, quantizer: Quantizer, shards: list[Shard], metadata_file: Path) -> EncodedCorpus:
        with self._time("encode"):
            return encode_corpus(
                self._workspace, self._manifest, shards, quantizer, self._config, self._threads, metadata_file
            )
