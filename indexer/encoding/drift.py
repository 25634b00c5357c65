"""Measures how far a corpus has drifted from the one that a quantizer was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.corpus.corpus_scan import SCORE_TOLERANCE
from indexer.encoding.encoded_shards import EncodedCorpus
from indexer.quantization.codes import decode
from searchforge.artifacts.manifest import Manifest

SHARE_WEIGHT = 0.25
"""Weight of the share of the corpus that changed: a limit of 0.1 allows two fifths, if nothing else changes."""

NEGLIGIBLE_ERROR = 0.002
"""Mean squared error, as a fraction of the vectors' variance, that hardly affects recall."""

_SAMPLE = 16_384
"""Number of codes from which the variance of the vectors is estimated."""


def index_statistics(encoded: EncodedCorpus, codebooks: Sequence[npt.NDArray[np.float32]]) -> dict[str, float]:
    """Returns the statistics that drift compares.

    Args:
      codebooks: Those of the quantizer that the corpus was encoded with.

    Returns:
      squared_error: Mean squared error of the codes.
      negligible_error: Mean squared error that hardly affects recall.
      imbalance: Mean size of an item's own partition, as a multiple of the mean partition size.
    """
    sizes = encoded.partition_sizes.astype(np.float64)
    sample = encoded.codes[:: -(-len(encoded.codes) // _SAMPLE)]
    variance = float(np.var(decode(sample, codebooks), axis=0, dtype=np.float64).sum()) + encoded.squared_error
    return {
        "squared_error": encoded.squared_error,
        "negligible_error": NEGLIGIBLE_ERROR * variance,
        "imbalance": float(np.sum(sizes**2) * len(sizes) / np.sum(sizes) ** 2),
    }


def measure_drift(trained: Mapping[str, float], current: Mapping[str, float], changed: float) -> dict[str, float]:
    """Compares an index with the one that its quantizer was trained for.

    Codes of a small corpus, or of an easy one, may have been almost exact at training time. Their error is therefore
    compared with the negligible one if that is more.

    Args:
      trained: `index_statistics` of the index at training time; the negligible error is not used.
      current: `index_statistics` of the index now.
      changed: Result of `share_changed`.

    Returns:
      Growth of squared error and imbalance, the share changed, and `drift`: the maximum, with the share weighted.
    """
    error = max(trained["squared_error"], current["negligible_error"], SCORE_TOLERANCE**2)
    growth = {
        "squared_error_growth": current["squared_error"] / error - 1,
        "imbalance_growth": current["imbalance"] / trained["imbalance"] - 1,
    }
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
