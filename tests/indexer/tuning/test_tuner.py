"""The tuner finds the smallest index that reaches a recall, and its estimates hold for the whole index."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.corpus.corpus_scan import exact_search
from indexer.corpus.queries import QueryEmbeddings
from indexer.encoding.recall import choose_partitions_searched, measure_recall
from indexer.quantization.query_direction import QueryDirectionModel
from indexer.quantization.query_map import query_aware_map
from indexer.tuning.evaluator import CANDIDATES, CorpusSize, ParameterEvaluator, TradeoffPoint
from indexer.tuning.parameter_grid import code_sizes, partition_grid, searched_steps
from indexer.tuning.parameters import IndexParameters
from indexer.tuning.quantizer_trainer import GroundTruth, QuantizerTrainer
from indexer.tuning.tuner import best_point, infeasible_message, tune
from searchforge.config import IndexConfig
from searchforge.errors import JobError
from tests.indexer import shards, tiny_corpus
from tests.indexer.encoding.test_recall import index_of
from tests.indexer.tiny_encoder import unit

DIM = 32
ITEMS = 4_000


def test_searching_more_partitions_finds_more_and_takes_longer() -> None:
    for code_bytes, partitions in ((8, 63), (24, 252)):
        points = evaluator().points(code_bytes, partitions)
        assert [point.parameters.partitions_searched for point in points] == searched_steps(IndexConfig(), partitions)
        assert np.all(np.diff([point.partition_recall for point in points]) >= 0)
        assert np.all(np.diff([point.search_ms for point in points]) > 0)
        assert points[-1].partition_recall == 1


def test_recall_does_not_exceed_partition_recall() -> None:
    assert all(point.recall <= point.partition_recall for point in every_point())


def test_longer_codes_have_higher_recall() -> None:
    recalls = [evaluator().points(size, 63)[-1].recall for size in code_sizes(IndexConfig(), DIM)]
    assert np.all(np.diff(recalls) > 0.02)


def test_expected_recall_matches_that_of_the_whole_index() -> None:
    ground_truth = ground_truth_for("tuning")
    for code_bytes, partitions, step in ((8, 63, 5), (16, 252, -1), (32, 63, 2), (32, 1, 0)):
        point = evaluator().points(code_bytes, partitions)[step]
        quantizer = evaluator().quantizer(point.parameters)
        found = measure_recall(quantizer, index_of(quantizer, corpus()), point.parameters, ground_truth)
        assert found["recall_at_10"] == pytest.approx(point.recall, abs=0.02)


LIMITS: dict[str, Callable[[], dict[str, Any]]] = {
    "a low recall": lambda: {"recall_at_10": 0.5},
    "a recall": lambda: {"recall_at_10": 0.8},
    "a high recall": lambda: {"recall_at_10": 0.95},
    "a latency": lambda: {"recall_at_10": 0.6, "max_latency_ms": fastest(24)},
    "a latency that only the smallest codes meet": lambda: {"recall_at_10": 0.5, "max_latency_ms": fastest(16)},
    "bytes": lambda: {"recall_at_10": 0.6, "max_bytes_per_image": largest(16)},
    "bytes, with a recall that the smallest code does not reach": lambda: {
        "recall_at_10": 0.8,
        "max_bytes_per_image": largest(16),
    },
    "a file size": lambda: {"recall_at_10": 0.6, "max_index_size": int(largest(16) * ITEMS)},
    "a configured code size": lambda: {"recall_at_10": 0.5, "code_bytes": 20},
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_smallest_code_that_reaches_the_recall_within_the_limits_is_found(name: str) -> None:
    config = IndexConfig(**LIMITS[name]())
    found = tune(evaluator(), config)
    fitting = {
        size: fits for size in code_sizes(config, DIM) if (fits := [p for p in points(size) if allowed(p, config)])
    }
    assert fitting, "no parameters fit, so nothing is tested"
    assert found is not None
    assert found.parameters.code_bytes == min(fitting)
    assert found in fitting[min(fitting)]


BOUNDS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": lambda: {},
    "a latency that the longest codes barely meet": lambda: {"max_latency_ms": fastest(32)},
    "a latency that the longest codes cannot meet": lambda: {"max_latency_ms": fastest(24)},
    "bytes": lambda: {"max_bytes_per_image": largest(16)},
    "a configured code size": lambda: {"code_bytes": 20},
}


@pytest.mark.parametrize("name", BOUNDS)
def test_without_a_required_recall_the_highest_within_the_limits_is_found(name: str) -> None:
    config = IndexConfig(recall_at_10=None, **BOUNDS[name]())
    found = tune(evaluator(), config)
    within = [p for size in code_sizes(config, DIM) for p in points(size) if allowed(p, config)]
    assert found is not None
    assert found in within
    assert found.recall == max(point.recall for point in within)


def test_the_fastest_of_indexes_of_about_the_same_size_is_chosen() -> None:
    made = [made_point(0.9, 50.0, 2.0), made_point(0.91, 51.0, 1.0), made_point(0.9, 53.0, 0.5)]
    assert best_point(made, IndexConfig(recall_at_10=0.9), CorpusSize(ITEMS, 0)) == made[1]
    assert best_point(made, IndexConfig(recall_at_10=0.905), CorpusSize(ITEMS, 0)) == made[1]


@pytest.mark.parametrize(
    "limits",
    [{"max_bytes_per_image": 49.9}, {"max_latency_ms": 0.4}, {"max_index_size": int(49.9 * ITEMS)}],
    ids=str,
)
def test_a_point_beyond_a_limit_is_not_chosen(limits: dict[str, Any]) -> None:
    made = [made_point(0.9, 50.0, 2.0), made_point(0.92, 51.0, 0.5)]
    for recall in (0.9, None):
        assert best_point(made, IndexConfig(recall_at_10=recall, **limits), CorpusSize(ITEMS, 0)) is None


def test_nothing_is_found_if_the_recall_is_out_of_reach() -> None:
    assert tune(evaluator(), IndexConfig(recall_at_10=0.9999)) is None
    assert tune(evaluator(), IndexConfig(recall_at_10=0.95, max_bytes_per_image=largest(16))) is None
    assert tune(evaluator(), IndexConfig(recall_at_10=None, max_latency_ms=0.9 * fastest(8))) is None


def test_the_infeasible_message_shows_the_nearest_points_on_both_sides_of_the_limits() -> None:
    made = [
        made_point(0.80, 30.0, 1.0, code_bytes=8),
        made_point(0.85, 40.0, 1.5, code_bytes=16),
        made_point(0.93, 40.0, 9.0, code_bytes=16),
        made_point(0.95, 80.0, 1.2, code_bytes=32),
        made_point(0.96, 80.0, 1.4, code_bytes=32),
    ]
    config = IndexConfig(recall_at_10=0.9, max_bytes_per_image=50.0, max_latency_ms=2.0)
    lines = infeasible_message(made, config, CorpusSize(ITEMS, 0)).splitlines()
    assert lines[0] == "no setting of the index reaches recall@10 of 0.9 within max_latency_ms 2.0, " + (
        "max_bytes_per_image 50.0"
    )
    assert lines[1] == f"  highest recall within the limits: {made[1].summary}"
    assert lines[2] == f"  smallest index that reaches it: {made[2].summary}"
    assert lines[3] == f"  fastest: {made[3].summary}"
    assert lines[5:8] == [f"  {made[i].summary}" for i in (0, 2, 4)]
    assert "lower index.recall_at_10" in lines[8]


def test_the_infeasible_message_covers_every_code_size() -> None:
    """So that it shows the highest recall within the limits, whichever sizes were evaluated first."""
    config = IndexConfig(recall_at_10=0.9999, max_bytes_per_image=largest(16))
    fresh = make_evaluator(config)
    assert tune(fresh, config) is None
    highest = max(point.recall for point in every_point() if point.bytes_per_image <= largest(16))
    assert f"within the limits: recall@10 {highest:.3f}" in infeasible_message(
        fresh.tradeoff, config, CorpusSize(ITEMS, 0)
    )


def test_configured_parameters_are_kept() -> None:
    config = IndexConfig(recall_at_10=None, code_bytes=11, partitions=30, partitions_searched=7, lut_type="int8")
    found = tune(make_evaluator(config), config)
    assert found is not None
    assert found.parameters == IndexParameters(11, 30, 7, "int8")
    quantizer = make_evaluator(config).quantizer(found.parameters)
    assert (len(quantizer.codebooks), len(quantizer.clusters)) == (11, 30)


def test_parameters_that_are_not_configured_are_tuned() -> None:
    for given in ({"code_bytes": 20}, {"partitions": 30}, {"partitions": 30, "partitions_searched": 9}):
        config = IndexConfig(recall_at_10=0.6, **given)
        found = tune(make_evaluator(config), config)
        assert found is not None
        assert found.parameters.to_json().items() >= given.items()
        assert found.recall >= 0.6


def test_only_a_small_corpus_may_have_a_single_partition() -> None:
    assert 1 in partition_grid(IndexConfig(), 5_000)
    assert 1 not in partition_grid(IndexConfig(), 1_000_000)


@pytest.mark.parametrize("items", [1, 2, 3, 10, 400, 1_000_000])
def test_the_grid_has_no_more_partitions_than_items(items: int) -> None:
    grid = partition_grid(IndexConfig(), items)
    assert grid
    assert all(1 <= partitions <= items for partitions in grid)


@pytest.mark.parametrize("partitions", [1, 2, 63, 4_000])
def test_searched_steps_reach_all_partitions(partitions: int) -> None:
    steps = searched_steps(IndexConfig(), partitions)
    assert (steps[0], steps[-1]) == (1, partitions)
    assert steps == sorted(set(steps))
    assert all(after <= max(before + 1, 1.1 * before) for before, after in itertools.pairwise(steps))


@pytest.mark.parametrize("dim", [4, 8, 100, 512])
def test_code_sizes_reach_one_byte_per_dimension(dim: int) -> None:
    sizes = code_sizes(IndexConfig(), dim)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == dim


@pytest.mark.parametrize("target", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("given", [{}, {"partitions": 63}], ids=str)
def test_the_required_recall_holds_on_queries_that_the_tuner_has_not_seen(target: float, given: dict[str, int]) -> None:
    config = IndexConfig(recall_at_10=target, **given)
    point = tune(evaluator(), config)
    assert point is not None
    quantizer = evaluator().quantizer(point.parameters)
    encoded = index_of(quantizer, corpus())
    parameters, _ = choose_partitions_searched(quantizer, encoded, point.parameters, ground_truth_for("tuning"), config)
    found = measure_recall(quantizer, encoded, parameters, ground_truth_for("verification"))["recall_at_10"]
    assert isinstance(found, float)
    assert found > target - 0.02


def test_training_depends_on_the_seed_and_not_on_threads() -> None:
    parameters = IndexParameters(8, 63, 5, "float")
    one, other = (make_evaluator(IndexConfig(), threads).quantizer(parameters).id for threads in (1, 3))
    assert one == other
    assert make_evaluator(IndexConfig(seed=1)).quantizer(parameters).id != one


def test_items_serve_as_queries_if_there_are_no_captions(tmp_path: Path) -> None:
    trainer = train(tmp_path, None)
    assert trainer.query_kind == "item"
    assert not shared_rows(trainer.tuning.queries, trainer.verification.queries)
    point, quantizer = trainer.train(0.9)
    assert point.recall >= 0.9
    assert not len(quantizer.query_direction.landmarks)  # no queries are known


def test_an_item_that_serves_as_a_query_is_its_own_nearest_neighbor(tmp_path: Path) -> None:
    """So no dead record serves as a query."""
    trainer = train(tmp_path, None, dead=[f"id{i}" for i in range(0, 300, 5)])
    for ground_truth in (trainer.tuning, trainer.verification):
        np.testing.assert_array_equal(ground_truth.neighbors.vectors[:, 0], ground_truth.queries)


def test_tuning_and_verification_captions_are_queries(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(4).normal(size=(240, tiny_corpus.DIM)))
    queries = QueryEmbeddings(vectors[:200], vectors[200:220], vectors[220:])
    trainer = train(tmp_path, queries)
    assert trainer.query_kind == "caption"
    np.testing.assert_array_equal(trainer.tuning.queries, queries.tuning)
    np.testing.assert_array_equal(trainer.verification.queries, queries.verification)
    assert len(trainer.train(0.8)[1].query_direction.landmarks)


def test_the_map_is_a_rotation_if_it_must_not_be_query_aware(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(4).normal(size=(240, tiny_corpus.DIM)))
    queries = QueryEmbeddings(vectors[:200], vectors[200:220], vectors[220:])
    transform = train(tmp_path, queries, query_aware=False).train(0.8)[1].transform
    np.testing.assert_allclose(transform @ transform.T, np.eye(tiny_corpus.DIM), atol=1e-5)


def test_an_infeasible_recall_is_an_error(tmp_path: Path) -> None:
    trainer = train(tmp_path, None, max_bytes_per_image=1.0)
    with pytest.raises(JobError, match=r"reaches recall@10 of 0.9 within .*max_bytes_per_image 1.0"):
        trainer.train(0.9)


def train(folder: Path, queries: QueryEmbeddings | None, dead: Sequence[str] = (), **config: Any) -> QuantizerTrainer:
    """Returns a trainer for 300 records in three shards."""
    files = shards.write_shards(folder, shards.records(300), 3, dead)
    return QuantizerTrainer(files, tiny_corpus.DIM, 300 - len(dead), queries, IndexConfig(**config), 2)


def shared_rows(one: np.ndarray, other: np.ndarray) -> set[bytes]:
    first, second = ({row.tobytes() for row in rows} for rows in (one, other))
    return first & second


def points(code_bytes: int) -> list[TradeoffPoint]:
    """Returns the points for all numbers of partitions in the grid."""
    return [
        point
        for partitions in partition_grid(IndexConfig(), ITEMS)
        for point in evaluator().points(code_bytes, partitions)
    ]


def fastest(code_bytes: int) -> float:
    """Returns the shortest search time at this code size."""
    return min(point.search_ms for point in points(code_bytes))


def largest(code_bytes: int) -> float:
    """Returns the bytes per image of the largest index at this code size."""
    return max(point.bytes_per_image for point in points(code_bytes))


def every_point() -> list[TradeoffPoint]:
    return [point for size in code_sizes(IndexConfig(), DIM) for point in points(size)]


def allowed(point: TradeoffPoint, config: IndexConfig) -> bool:
    """Returns whether a point reaches the recall within the limits."""
    infinite = float("inf")
    return (
        point.recall >= (config.recall_at_10 or 0)
        and point.search_ms <= (config.max_latency_ms or infinite)
        and point.bytes_per_image <= (config.max_bytes_per_image or infinite)
        and point.bytes_per_image * ITEMS <= (config.max_index_size or infinite)
    )


def made_point(recall: float, bytes_per_image: float, search_ms: float, code_bytes: int = 16) -> TradeoffPoint:
    return TradeoffPoint(IndexParameters(code_bytes, 63, 5, "float"), recall, 1.0, bytes_per_image, search_ms)


@functools.cache
def evaluator() -> ParameterEvaluator:
    """Returns an evaluator that all tests share, as it caches what it trains."""
    return make_evaluator(IndexConfig())


def make_evaluator(config: IndexConfig, threads: int = 2) -> ParameterEvaluator:
    transform = query_aware_map(corpus(), near_corpus(600, seed=1))
    ground_truth = ground_truth_for("tuning")
    config = config.model_copy(update={"training_iterations": 3})
    return ParameterEvaluator(
        corpus(),
        transform,
        QueryDirectionModel.identity(DIM),
        ground_truth.queries,
        ground_truth.neighbors,
        CorpusSize(ITEMS, 0),
        config,
        threads,
    )


@functools.cache
def ground_truth_for(purpose: str) -> GroundTruth:
    """Returns the ground truth of 200 tuning queries or 300 verification queries."""
    queries = near_corpus(200, seed=2) if purpose == "tuning" else near_corpus(300, seed=3)
    return GroundTruth(queries, exact_search(queries, corpus(), CANDIDATES))


def near_corpus(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    near = corpus()[generator.integers(ITEMS, size=count)]
    return unit(near + 0.12 * generator.normal(size=near.shape))


@functools.cache
def corpus() -> np.ndarray:
    """Returns 60 clusters of vectors."""
    generator = np.random.default_rng(0)
    spread = np.linspace(1.5, 0.3, DIM)
    centres = generator.normal(size=(60, DIM)) * spread
    return unit(centres[generator.integers(60, size=ITEMS)] + 0.6 * generator.normal(size=(ITEMS, DIM)) * spread)
