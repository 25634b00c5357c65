"""How far a corpus has moved from the one that a quantizer was trained on: whether it may be used again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from indexer.encoding.encoded_shards import Merged
from searchforge.artifacts.manifest import Manifest

SHARE_WEIGHT = 0.25
"""Of the share of the corpus that changed: with a limit of 0.1, two fifths of it may, if nothing else moves."""


def statistics(merged: Merged) -> dict[str, float]:
    """Returns what is compared: the mean squared error of codes, and the imbalance of partitions.

    The imbalance is the number of items in an item's own partition, on average, as a multiple of the mean partition.
    """
    sizes = merged.partition_sizes.astype(np.float64)
    return {
        "squared_error": merged.squared_error,
        "imbalance": float(np.sum(sizes**2) * len(sizes) / np.sum(sizes) ** 2),
    }


def drift(trained: Mapping[str, float], found: Mapping[str, float], changed: float) -> dict[str, float]:
    """Compares an index with the one whose quantizer it uses.

    Args:
      trained, found: `statistics` of both.
      changed: share of the corpus, see `share_changed`.

    Returns:
      Growth of error and imbalance, the share changed, and `drift`: the largest, the share weighted.
    """
    growth = {f"{name}_growth": found[name] / max(trained[name], 1e-12) - 1 for name in trained}
    overall = max(0.0, *growth.values(), SHARE_WEIGHT * changed)
    return {**growth, "share_changed": changed, "drift": overall}


def share_changed(trained_on: Manifest, manifest: Manifest) -> float:
    """Returns how many items came or went, as a share of the corpus that was trained on: at least 0.

    Only shards that both runs hold are known to be the same.
    """
    before, after = (_live_rows(run) for run in (trained_on, manifest))
    kept = sum(count - len(dead | after[shard][1]) for shard, (count, dead) in before.items() if shard in after)
    return (trained_on.records - kept + manifest.records - kept) / trained_on.records


def _live_rows(manifest: Manifest) -> dict[str, tuple[int, Any]]:
    return {shard.sha256: (shard.count, frozenset(shard.dead)) for shard in manifest.shards}
