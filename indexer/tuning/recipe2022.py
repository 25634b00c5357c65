"""The tutorial's index of 2022: ScaNN trains it on a sample, with even blocks, and settings by the corpus' size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from indexer.corpus.corpus_scan import survey
from indexer.corpus.shards import Shard
from indexer.quantization import scann_worker
from indexer.quantization.quantizer import Quantizer
from indexer.tuning.settings import Setting, default_partitions
from searchforge.config import IndexConfig
from searchforge.processes import isolated

_SEARCHED = 4
"""Partitions that the tutorial searches: about 1 percent of its 351."""


def recipe_quantizer(
    shards: Sequence[Shard], dim: int, items: int, config: IndexConfig, threads: int, scratch: Path
) -> tuple[Quantizer, Setting]:
    """Returns the recipe's quantizer and setting; what the configuration sets by hand is kept.

    Args:
      scratch: folder for files that pass to and from the worker process.

    Raises:
      UsageError: the corpus must not be indexed.
      JobError: ScaNN failed, or a shard is damaged.
    """
    partitions = config.partitions or default_partitions(items)
    dims_per_block = -(-dim // (config.code_bytes or dim))
    searched = min(config.partitions_searched or _SEARCHED, partitions)
    setting = Setting(-(-dim // dims_per_block), partitions, searched, config.lut_type)
    no_queries = np.empty((0, dim), np.float32)
    paths = {"sample": str(scratch / "sample.npy"), "quantizer": str(scratch / "quantizer.safetensors")}
    np.save(paths["sample"], survey(shards, dim, config.training_sample, config.seed, no_queries, 1, threads).sample)
    request = {"partitions": partitions, "dims_per_block": dims_per_block, "seed": config.seed}
    isolated.call(scann_worker.MODULE, {**request, **paths})
    return Quantizer.from_bytes(Path(paths["quantizer"]).read_bytes(), paths["quantizer"]), setting
