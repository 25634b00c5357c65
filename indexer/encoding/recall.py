"""Measures the recall of a whole index as a device searches it, and chooses the number of partitions searched."""

from __future__ import annotations

import dataclasses

import numpy as np

from indexer.encoding.encoded_shards import EncodedCorpus
from indexer.encoding.reference import ReferenceSearcher
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_map import inverse_transpose
from indexer.tuning.cost_model import search_ms
from indexer.tuning.evaluator import K
from indexer.tuning.parameter_grid import searched_steps
from indexer.tuning.parameters import IndexParameters
from indexer.tuning.quantizer_trainer import GroundTruth
from searchforge.config import IndexConfig

_Z = 1.96
"""Standard normal quantile of a 95 percent confidence interval."""


def measure_recall(
    quantizer: Quantizer, encoded: EncodedCorpus, parameters: IndexParameters, ground_truth: GroundTruth
) -> dict[str, object]:
    """Returns recall@1, recall@10 with its 95 percent confidence interval, and the number of queries."""
    searcher = _searcher(quantizer, encoded, parameters)
    found, _ = searcher.search(_mapped_queries(quantizer, ground_truth), K, parameters.partitions_searched)
    hits = _corpus_rows(encoded, found)
    at_10 = ground_truth.neighbors.recalls(hits, K)
    half = _Z * float(at_10.std()) / max(1, len(at_10)) ** 0.5
    return {
        "queries": len(at_10),
        "recall_at_1": round(float(ground_truth.neighbors.recalls(hits, 1).mean()), 4),
        "recall_at_10": round(float(at_10.mean()), 4),
        "interval": [round(max(0.0, float(at_10.mean()) - half), 4), round(min(1.0, float(at_10.mean()) + half), 4)],
    }


def choose_partitions_searched(
    quantizer: Quantizer,
    encoded: EncodedCorpus,
    parameters: IndexParameters,
    ground_truth: GroundTruth,
    config: IndexConfig,
) -> tuple[IndexParameters, float]:
    """Returns the parameters with the fewest partitions searched that reach the recall in the whole index.

    Returns:
      The parameters and their recall@10. If none reach `recall_at_10` within `max_latency_ms`, those of the highest
      recall.
    """
    searcher = _searcher(quantizer, encoded, parameters)
    queries = _mapped_queries(quantizer, ground_truth)
    route = searcher.route(queries, parameters.partitions)
    scored = np.cumsum(encoded.partition_sizes[route], axis=1).mean(axis=0)
    dim = quantizer.transform.shape[1]
    steps = [
        step
        for step in searched_steps(config, parameters.partitions)
        if config.max_latency_ms is None
        or search_ms(dim, dataclasses.replace(parameters, partitions_searched=step), scored[step - 1])
        <= config.max_latency_ms
    ] or searched_steps(config, parameters.partitions)[:1]
    found, _ = searcher.sweep(queries, K, steps)
    best = dataclasses.replace(parameters, partitions_searched=steps[-1]), -1.0
    for step, items in zip(steps, found, strict=True):
        recall = float(ground_truth.neighbors.recalls(_corpus_rows(encoded, items), K).mean())
        if recall > best[1]:
            best = dataclasses.replace(parameters, partitions_searched=step), recall
        if config.recall_at_10 is not None and recall >= config.recall_at_10:
            break
    return best


def _searcher(quantizer: Quantizer, encoded: EncodedCorpus, parameters: IndexParameters) -> ReferenceSearcher:
    return ReferenceSearcher(
        quantizer.centroids, quantizer.codebooks, encoded.codes, encoded.partition_sizes, parameters.lut_type
    )


def _mapped_queries(quantizer: Quantizer, ground_truth: GroundTruth) -> np.ndarray:
    return ground_truth.queries @ inverse_transpose(quantizer.transform).T


def _corpus_rows(encoded: EncodedCorpus, items: np.ndarray) -> np.ndarray:
    """Converts item numbers in device order to those in shard order; -1 stays -1."""
    return np.where(items >= 0, encoded.order[items], -1)
