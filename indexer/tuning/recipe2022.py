"""Quantizer of the 2022 recipe: trained by ScaNN on a sample, with even blocks and parameters set by the corpus size.

The recipe is that of TensorFlow's tutorial "On-device Text-to-Image Search" of 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from indexer.corpus.corpus_scan import scan_corpus
from indexer.corpus.shards import Shard
from indexer.quantization import scann_worker
from indexer.quantization.quantizer import Quantizer
from indexer.tuning.parameters import IndexParameters, default_partitions
from searchforge.config import IndexConfig
from searchforge.processes import isolated

_PARTITIONS_SEARCHED = 4
"""Number of partitions that the tutorial searches: about 1 percent of its 351."""


def recipe_quantizer(
    shards: Sequence[Shard], dim: int, items: int, config: IndexConfig, threads: int, scratch: Path
) -> tuple[Quantizer, IndexParameters]:
    """Returns the recipe's quantizer and parameters; explicitly configured parameters take precedence.

    Args:
      scratch: Folder for files exchanged with the worker process.

    Raises:
      UsageError: The corpus contains records that cannot be indexed.
      JobError: ScaNN failed, or a shard is damaged.
    """
    partitions = config.partitions or default_partitions(items)
    dims_per_block = -(-dim // (config.code_bytes or dim))
    searched = min(config.partitions_searched or _PARTITIONS_SEARCHED, partitions)
    parameters = IndexParameters(-(-dim // dims_per_block), partitions, searched, config.lut_type)
    no_queries = np.empty((0, dim), np.float32)
    paths = {"sample": str(scratch / "sample.npy"), "quantizer": str(scratch / "quantizer.safetensors")}
    np.save(
        paths["sample"], scan_corpus(shards, dim, config.training_sample, config.seed, no_queries, 1, threads).sample
    )
    request = {"partitions": partitions, "dims_per_block": dims_per_block, "seed": config.seed}
    isolated.call(scann_worker.MODULE, {**request, **paths})
    return Quantizer.from_bytes(Path(paths["quantizer"]).read_bytes(), paths["quantizer"]), parameters
