"""Measures how far a corpus has drifted from the one that a quantizer was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from indexer.encoding.encoded_shards import EncodedCorpus
from searchforge.artifacts.manifest import Manifest

SHARE_WEIGHT = 0.25
"""Weight of the share of the corpus that changed: a limit of 0.1 allows two fifths, if nothing else changes."""


def index_statistics(encoded: EncodedCorpus) -> dict[str, float]:
    """Returns the statistics that drift compares: mean squared error of the codes and imbalance of the partitions.

    The imbalance is the mean size of an item's own partition, as a multiple of the mean partition size.
    """
    sizes = encoded.partition_sizes.astype(np.float64)
    return {
        "squared_error": encoded.squared_error,
        "imbalance": float(np.sum(sizes**2) * len(sizes) / np.sum(sizes) ** 2),
    }


def measure_drift(trained: Mapping[str, float], current: Mapping[str, float], changed: float) -> dict[str, float]:
    """Compares an index with the one that its quantizer was trained for.

    Args:
      trained: `index_statistics` of the index at training time.
      current: `index_statistics` of the index now.
      changed: Result of `share_changed`.

    Returns:
      Growth of squared error and imbalance, the share changed, and `drift`: the maximum, with the share weighted.
    """
    growth = {f"{name}_growth": current[name] / max(trained[name], 1e-12) - 1 for name in trained}
    overall = max(0.0, *growth.values(), SHARE_WEIGHT * changed)
    return {**growth, "share_changed": changed, "drift": overall}


def share_changed(trained_on: Manifest, manifest: Manifest) -> float:
    """Returns the number of items added and removed, divided by the size of the corpus that was trained on.

    Only items in shards that both runs contain count as unchanged.
    """
    before, after = (_live_rows(run) for run in (trained_on, manifest))
    kept = sum(count - len(dead | after[shard][1]) for shard, (count, dead) in before.items() if shard in after)
    return (trained_on.records - kept + manifest.records - kept) / trained_on.records


def _live_rows(manifest: Manifest) -> dict[str, tuple[int, Any]]:
    """Returns the number of records and the dead rows of each shard, by its SHA-256."""
    return {shard.sha256: (shard.count, frozenset(shard.dead)) for shard in manifest.shards}
