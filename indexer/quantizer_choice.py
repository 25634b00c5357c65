"""How a corpus becomes codes: with the quantizer of an earlier build, as in 2022, or with one that is tuned for it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.corpus.queries import QueryTexts, embed_queries
from indexer.corpus.shards import Shard, open_corpus
from indexer.encoding.drift import drift, share_changed, statistics
from indexer.encoding.encoded_shards import Merged
from indexer.encoding.local_run import encode_corpus
from indexer.encoding.recall import measure, settle
from indexer.encoding.reuse import Base
from indexer.quantization.quantizer import Quantizer
from indexer.stopwatch import Stopwatch
from indexer.tuning.cost_model import payload_bytes, with_metadata
from indexer.tuning.recipe2022 import recipe_quantizer
from indexer.tuning.settings import Setting
from indexer.tuning.training import Training
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import IndexConfig
from searchforge.errors import JobError

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Sizes of code that are built until the whole index has the recall that the tuner expected."""


@dataclass(frozen=True)
class Encoded:
    """An encoded corpus and how it came about.

    Attributes:
      training: for build.json: what the quantizer was trained on, its statistics, what the tuner measured.
      curve: points of the trade-off curve, as JSON; empty where nothing was tuned.
    """

    quantizer: Quantizer
    setting: Setting
    merged: Merged
    training: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)


class CorpusEncoder:
    """Encodes an embedding run; trains a quantizer for it unless an earlier one's still fits.

    Args:
      texts: captions to tune with; None: there are none.
      text_encoder: TFLite file that embeds them.
    """

    def __init__(
        self,
        config: IndexConfig,
        workspace: Workspace,
        manifest: Manifest,
        texts: QueryTexts | None,
        text_encoder: Path,
        stopwatch: Stopwatch,
    ) -> None:
        self._config, self._workspace, self._manifest = config, workspace, manifest
        self._texts, self._text_encoder = texts, text_encoder
        self._threads = len(os.sched_getaffinity(0))
        self._time = stopwatch.step

    def encode(self, base: Base | None, metadata_file: Path) -> Encoded:
        """Encodes the corpus, with the base's quantizer unless the corpus has drifted away from it."""
        with self._time("open"):
            shards = open_corpus(self._workspace, self._manifest)
        if base:
            encoded = self._encode_on(base, shards, metadata_file)
            if encoded:
                return encoded
        if self._config.preset == "recipe2022":
            return self._encode_recipe(shards, metadata_file)
        return self._encode_tuned(shards, metadata_file)

    def _encode_on(self, base: Base, shards: list[Shard], metadata_file: Path) -> Encoded | None:
        merged = self._encode(base.quantizer, shards, metadata_file)
        outgrown = self._outgrown(base.setting, merged)
        if outgrown:
            logger.info(f"the corpus has outgrown {outgrown} at {base.setting.summary}")
            return None
        moved = drift(base.trained, statistics(merged), share_changed(base.trained_on, self._manifest))
        if moved["drift"] > self._config.max_drift:
            logger.info(f"the corpus has drifted by {moved['drift']:.3f} (index.max_drift {self._config.max_drift})")
            return None
        logger.info(f"the quantizer of embeddings {base.trained_on.id} is used again: drift {moved['drift']:.3f}")
        training = {
            "embeddings": base.trained_on.id,
            "statistics": base.trained,
            "tuning": base.tuning,
            "drift": moved,
        }
        return Encoded(base.quantizer, base.setting, merged, training)

    def _outgrown(self, setting: Setting, merged: Merged) -> str | None:
        """Returns the limit of size that the corpus exceeds at a setting, if there is one."""
        records = self._manifest.records
        payload = payload_bytes(records, self._manifest.dim, setting)
        for name, value in (
            ("max_bytes_per_image", payload / records),
            ("max_index_size", with_metadata(payload, records, merged.metadata_bytes)),
        ):
            limit = getattr(self._config, name)
            if limit is not None and value > limit:
                return f"index.{name}"
        return None

    def _encode_recipe(self, shards: list[Shard], metadata_file: Path) -> Encoded:
        with self._time("train"):
            quantizer, setting = recipe_quantizer(
                shards,
                self._manifest.dim,
                self._manifest.records,
                self._config,
                self._threads,
                metadata_file.parent,
            )
        logger.info(f"index {self._manifest.records:,} images as in 2022: {setting.summary}")
        merged = self._encode(quantizer, shards, metadata_file)
        return Encoded(quantizer, setting, merged, self._training(merged, {}))

    def _encode_tuned(self, shards: list[Shard], metadata_file: Path) -> Encoded:
        index, records = self._config, self._manifest.records
        queries = None
        if self._texts:
            with self._time("embed_queries"):
                queries = embed_queries(self._text_encoder, self._texts, self._workspace.cache("queries"))
        with self._time("survey"):
            training = Training(shards, self._manifest.dim, records, queries, index, self._threads)
        expected = index.recall_at_10
        for _ in range(_ATTEMPTS):
            with self._time("tune"):
                point, quantizer = training.choose(expected)
            logger.info(f"  expected: {point.summary}")
            merged = self._encode(quantizer, shards, metadata_file)
            with self._time("verify"):
                setting, reached = settle(quantizer, merged, point.setting, training.tuning, index)
            if expected is None or index.recall_at_10 is None or reached >= index.recall_at_10:
                break
            expected += index.recall_at_10 - reached + 0.002
        else:
            raise JobError(
                f"the index reaches recall@10 of {reached:.3f} at {setting.summary}, expected {index.recall_at_10}; "
                "set index.recall_at_10 lower, or raise index.max_latency_ms"
            )
        with self._time("verify"):
            recall = {
                name: measure(quantizer, merged, setting, questions)
                for name, questions in (("tuning", training.tuning), ("verification", training.verification))
            }
        tuning = {"query_kind": training.query_kind, "recall_at_10": recall}
        encoded = self._training(merged, tuning)
        return Encoded(quantizer, setting, merged, encoded, [point.to_json() for point in training.curve])

    def _training(self, merged: Merged, tuning: dict[str, Any]) -> dict[str, Any]:
        return {
            "embeddings": self._manifest.id,
            "statistics": statistics(merged),
            "tuning": tuning,
            "drift": None,
        }

    def _encode(self, quantizer: Quantizer, shards: list[Shard], metadata_file: Path) -> Merged:
        with self._time("encode"):
            return encode_corpus(
                self._workspace, self._manifest, shards, quantizer, self._config, self._threads, metadata_file
            )
