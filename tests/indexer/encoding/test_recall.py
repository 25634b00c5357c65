"""Recall is measured on the whole index, and the fewest partitions that reach it are searched."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from indexer.corpus.corpus_scan import ExactNeighbors, exact_search
from indexer.encoding.encoded_shards import EncodedCorpus
from indexer.encoding.recall import choose_partitions_searched, measure_recall
from indexer.quantization.codebooks import train_codebooks
from indexer.quantization.partitions import train_partitions
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_direction import QueryDirectionModel
from indexer.quantization.query_map import query_aware_map
from indexer.tuning.cost_model import search_ms
from indexer.tuning.parameter_grid import searched_steps
from indexer.tuning.parameters import IndexParameters
from indexer.tuning.quantizer_trainer import GroundTruth
from searchforge.config import IndexConfig
from tests.indexer.tiny_encoder import unit

DIM = 16
PARTITIONS = 40
EXACT = IndexParameters(code_bytes=DIM, partitions=PARTITIONS, partitions_searched=PARTITIONS, lut_type="float")
"""Codes of one byte per dimension, which lose hardly any recall."""


def test_an_exact_index_has_recall_1() -> None:
    """Each vector is an entry of the codebook, so scores are exact; device order differs from shard order."""
    vectors = corpus()[:200]
    transform = query_aware_map(vectors, None)
    books = tuple(train_codebooks(vectors @ transform.T, [DIM], iterations=2, seed=0))
    quantizer = Quantizer(transform, vectors[:5], books, QueryDirectionModel.identity(DIM), 6.0)
    found = measure_recall(quantizer, index_of(quantizer, vectors), parameters(1, 5, 5), ground_truth_for(vectors))
    assert found == {"queries": 100, "recall_at_1": 1.0, "recall_at_10": 1.0, "interval": [1.0, 1.0]}


def test_recall_counts_exact_neighbors_among_the_hits() -> None:
    """Half of each query's neighbors are replaced by another query's, so only half can be found."""
    ground_truth = ground_truth_for(corpus())
    exact = ground_truth.neighbors
    items = np.concatenate([exact.items[:, :5], np.roll(exact.items[:, 5:10], 50, axis=0)], axis=1)
    mixed = GroundTruth(ground_truth.queries, ExactNeighbors(items, exact.scores[:, :10], exact.vectors[:, :10]))
    quantizer = some_quantizer()
    recall = measure_recall(quantizer, index_of(quantizer, corpus()), EXACT, mixed)
    assert recall["recall_at_1"] > 0.85
    assert recall["recall_at_10"] == pytest.approx(0.5, abs=0.05)


def test_searching_fewer_partitions_finds_less() -> None:
    few, more, all_of_them = (recall_at(searched) for searched in (1, 8, PARTITIONS))
    assert few < more - 0.05 < all_of_them - 0.05
    assert all_of_them > 0.9


def test_the_interval_is_the_confidence_interval_of_the_mean_over_queries() -> None:
    quantizer, encoded, ground_truth = whole_index()
    searched = parameters(DIM, PARTITIONS, 2)
    each = [
        measure_recall(
            quantizer, encoded, searched, GroundTruth(ground_truth.queries[rows], ground_truth.neighbors.rows(rows))
        )["recall_at_10"]
        for rows in (slice(query, query + 1) for query in range(100))
    ]
    recall = measure_recall(quantizer, encoded, searched, ground_truth)
    error = np.std(each) / 100**0.5
    assert recall["recall_at_10"] == pytest.approx(np.mean(each), abs=1e-4)
    assert recall["interval"] == pytest.approx(np.mean(each) + error * np.array([-1.96, 1.96]), abs=2e-4)


@pytest.mark.parametrize("found_all", [1, 2])
def test_the_interval_is_clipped_to_0_and_1(found_all: int) -> None:
    """With three queries, one or two of which find everything."""
    quantizer, encoded, ground_truth = whole_index()
    items = ground_truth.neighbors.items[:3].copy()
    items[found_all:] = len(corpus())  # not an item of the index
    three = GroundTruth(
        ground_truth.queries[:3], dataclasses.replace(ground_truth.neighbors.rows(slice(3)), items=items)
    )
    low, high = measure_recall(quantizer, encoded, EXACT, three)["interval"]
    assert 0 <= low < high <= 1


def test_a_corpus_of_fewer_than_ten_items_has_recall_1_if_all_are_found() -> None:
    quantizer, vectors = some_quantizer(), corpus()[:4]
    found = measure_recall(quantizer, index_of(quantizer, vectors), EXACT, ground_truth_for(vectors))
    assert found["recall_at_10"] == 1.0


@pytest.mark.parametrize("target", [0.5, 0.7, 0.85])
def test_the_fewest_partitions_that_reach_the_recall_are_searched(target: float) -> None:
    quantizer, encoded, ground_truth = whole_index()
    config = IndexConfig(recall_at_10=target)
    settled, reached = choose_partitions_searched(quantizer, encoded, EXACT, ground_truth, config)
    steps = searched_steps(config, PARTITIONS)
    assert settled.partitions_searched == next(step for step in steps if recall_at(step) >= target)
    assert reached == pytest.approx(recall_at(settled.partitions_searched), abs=1e-4)
    assert dataclasses.replace(settled, partitions_searched=PARTITIONS) == EXACT


def test_the_choice_does_not_depend_on_the_tuners_number_of_partitions_searched() -> None:
    quantizer, encoded, ground_truth = whole_index()
    config = IndexConfig(recall_at_10=0.7)
    assert choose_partitions_searched(
        quantizer, encoded, parameters(DIM, PARTITIONS, 1), ground_truth, config
    ) == choose_partitions_searched(quantizer, encoded, EXACT, ground_truth, config)


def test_if_no_number_of_partitions_reaches_the_recall_the_best_is_chosen() -> None:
    quantizer, encoded, ground_truth = whole_index()
    _, reached = choose_partitions_searched(quantizer, encoded, EXACT, ground_truth, IndexConfig(recall_at_10=0.9999))
    highest = max(recall_at(step) for step in searched_steps(IndexConfig(), PARTITIONS))
    assert reached == pytest.approx(highest, abs=1e-4)


def test_without_a_required_recall_the_best_number_of_partitions_is_chosen() -> None:
    quantizer, encoded, ground_truth = whole_index()
    _, reached = choose_partitions_searched(quantizer, encoded, EXACT, ground_truth, IndexConfig(recall_at_10=None))
    highest = max(recall_at(step) for step in searched_steps(IndexConfig(), PARTITIONS))
    assert reached == pytest.approx(highest, abs=1e-4)


def test_no_more_partitions_are_searched_than_the_latency_allows() -> None:
    quantizer, encoded, ground_truth = whole_index()

    def latency(searched: int) -> float:
        """Returns the expected latency if all partitions have equal size."""
        return search_ms(DIM, parameters(DIM, PARTITIONS, searched), len(corpus()) * searched / PARTITIONS)

    config = IndexConfig(recall_at_10=0.85, max_latency_ms=latency(4))
    settled, reached = choose_partitions_searched(quantizer, encoded, EXACT, ground_truth, config)
    # Partitions near queries have more items than the mean partition.
    assert 1 <= settled.partitions_searched <= 4
    assert reached == pytest.approx(recall_at(settled.partitions_searched), abs=1e-4)
    assert reached < 0.85


@pytest.mark.parametrize("latency", [None, 2.0, 0.001])
def test_a_configured_number_of_partitions_searched_is_kept(latency: float | None) -> None:
    quantizer, encoded, ground_truth = whole_index()
    config = IndexConfig(recall_at_10=None, partitions_searched=7, max_latency_ms=latency or 1e9)
    settled, _ = choose_partitions_searched(quantizer, encoded, parameters(DIM, PARTITIONS, 7), ground_truth, config)
    assert settled.partitions_searched == 7


@functools.cache
def whole_index() -> tuple[Quantizer, EncodedCorpus, GroundTruth]:
    quantizer = some_quantizer()
    return quantizer, index_of(quantizer, corpus()), ground_truth_for(corpus())


@functools.cache
def recall_at(searched: int) -> float:
    """Returns the measured recall@10 of `whole_index`."""
    recall = measure_recall(*whole_index()[:2], parameters(DIM, PARTITIONS, searched), whole_index()[2])["recall_at_10"]
    assert isinstance(recall, float)
    return recall


@functools.cache
def some_quantizer() -> Quantizer:
    vectors = corpus()
    transform = query_aware_map(vectors, None)
    books = train_codebooks(vectors @ transform.T, [1] * DIM, iterations=4, seed=0)
    return Quantizer(
        transform,
        train_partitions(vectors, PARTITIONS, 4, seed=0),
        tuple(books),
        QueryDirectionModel.identity(DIM),
        0.0,
    )


def parameters(code_bytes: int, partitions: int, searched: int) -> IndexParameters:
    return IndexParameters(code_bytes, partitions, searched, "float")


def index_of(quantizer: Quantizer, vectors: np.ndarray) -> EncodedCorpus:
    """Returns encoded vectors in device order; their row numbers are their numbers in shard order."""
    partitions, codes = quantizer.encode(vectors)
    order = np.argsort(partitions, kind="stable")
    sizes = np.bincount(partitions, minlength=len(quantizer.clusters))
    no_metadata = np.empty(0, np.uint8), np.zeros(len(vectors) + 1, np.int64)
    return EncodedCorpus(codes[order], sizes, *no_metadata, order, 0.0)


def ground_truth_for(vectors: np.ndarray) -> GroundTruth:
    """Returns the ground truth of 100 queries near vectors."""
    generator = np.random.default_rng(2)
    near = vectors[generator.integers(len(vectors), size=100)]
    queries = unit(near + 0.1 * generator.normal(size=near.shape))
    return GroundTruth(queries, exact_search(queries, vectors, 20))


@functools.cache
def corpus() -> np.ndarray:
    return unit(np.random.default_rng(1).normal(size=(2_000, DIM)))
