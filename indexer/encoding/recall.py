"""Recall of a whole index, searched as a device does (indexer.encoding.reference), and the partitions that it takes."""

from __future__ import annotations

import dataclasses

import numpy as np

from indexer.encoding.encoded_shards import Merged
from indexer.encoding.reference import ReferenceSearcher
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_map import inverse_transpose
from indexer.tuning.cost_model import search_ms
from indexer.tuning.settings import Setting
from indexer.tuning.training import Questions
from indexer.tuning.tuner import K, searched_steps
from searchforge.config import IndexConfig

_Z = 1.96
"""Of a 95 percent confidence interval."""


def measure(quantizer: Quantizer, merged: Merged, setting: Setting, questions: Questions) -> dict[str, object]:
    """Returns recall@1 and recall@10 on queries, the number of queries, and the 95 percent interval of recall@10."""
    found, _ = _searcher(quantizer, merged, setting).search(
        _mapped(quantizer, questions), K, setting.partitions_searched
    )
    hits = _rows(merged, found)
    at_10 = questions.answers.recalls(hits, K)
    half = _Z * float(at_10.std()) / max(1, len(at_10)) ** 0.5
    return {
        "queries": len(at_10),
        "recall_at_1": round(float(questions.answers.recalls(hits, 1).mean()), 4),
        "recall_at_10": round(float(at_10.mean()), 4),
        "interval": [round(max(0.0, float(at_10.mean()) - half), 4), round(min(1.0, float(at_10.mean()) + half), 4)],
    }


def settle(
    quantizer: Quantizer, merged: Merged, setting: Setting, questions: Questions, config: IndexConfig
) -> tuple[Setting, float]:
    """Returns the setting with the fewest partitions searched that reaches the recall in the whole index.

    Returns:
      The setting and its recall@10; where none reaches `recall_at_10` within `max_latency_ms`, the one that comes
      nearest.
    """
    searcher = _searcher(quantizer, merged, setting)
    queries = _mapped(quantizer, questions)
    route = searcher.route(queries, setting.partitions)
    scored = np.cumsum(merged.partition_sizes[route], axis=1).mean(axis=0)
    dim = quantizer.transform.shape[1]
    steps = [
        step
        for step in searched_steps(config, setting.partitions)
        if config.max_latency_ms is None
        or search_ms(dim, dataclasses.replace(setting, partitions_searched=step), scored[step - 1])
        <= config.max_latency_ms
    ] or searched_steps(config, setting.partitions)[:1]
    found, _ = searcher.sweep(queries, K, steps)
    best = dataclasses.replace(setting, partitions_searched=steps[-1]), -1.0
    for step, items in zip(steps, found, strict=True):
        recall = float(questions.answers.recalls(_rows(merged, items), K).mean())
        if recall > best[1]:
            best = dataclasses.replace(setting, partitions_searched=step), recall
        if config.recall_at_10 is not None and recall >= config.recall_at_10:
            break
    return best


def _searcher(quantizer: Quantizer, merged: Merged, setting: Setting) -> ReferenceSearcher:
    return ReferenceSearcher(
        quantizer.centroids, quantizer.codebooks, merged.codes, merged.partition_sizes, setting.lut_type
    )


def _mapped(quantizer: Quantizer, questions: Questions) -> np.ndarray:
    return questions.queries @ inverse_transpose(quantizer.transform).T


def _rows(merged: Merged, items: np.ndarray) -> np.ndarray:
    """Returns the items' numbers in the order of the shards; -1 stays."""
    return np.where(items >= 0, merged.order[items], -1)
