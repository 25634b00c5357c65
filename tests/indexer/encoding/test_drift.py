"""Drift combines the growth of errors and imbalance with the share of the corpus that changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from indexer.encoding.drift import NEGLIGIBLE_ERROR, SHARE_WEIGHT, index_statistics, measure_drift, share_changed
from indexer.encoding.encoded_shards import EncodedCorpus
from searchforge.artifacts.manifest import Manifest, ShardInfo
from searchforge.config import IndexConfig
from tests.indexer.shards import records, workspace_with_encoder
from tests.indexer.tiny_corpus import commit_embeddings

TRAINED = {"squared_error": 0.2, "negligible_error": 0.1, "imbalance": 1.5}

CODEBOOKS = [np.array([[0, 0], [2, 4]] + [[9, 9]] * 254, np.float32), np.array([[0], [2]] + [[9]] * 254, np.float32)]
"""Two blocks, of two dimensions and of one."""


@pytest.mark.parametrize(
    ("sizes", "imbalance"),
    [
        ([5, 5, 5, 5], 1.0),
        ([20, 0, 0, 0], 4.0),
        ([7], 1.0),
        ([6, 2], 1.25),  # an item's partition has (6 x 6 + 2 x 2) / 8 = 5 items on average, the mean partition 4
    ],
)
def test_imbalance_is_the_relative_mean_size_of_an_items_partition(sizes: list[int], imbalance: float) -> None:
    assert index_statistics(index_of(sizes), CODEBOOKS)["imbalance"] == pytest.approx(imbalance)


def test_the_error_is_that_of_the_index() -> None:
    assert index_statistics(index_of([3, 4], squared_error=0.125), CODEBOOKS)["squared_error"] == 0.125


def test_the_negligible_error_is_relative_to_the_variance_of_the_vectors() -> None:
    codes = np.repeat([[0, 0], [0, 1]], 2, axis=0).astype(np.uint8)
    index = dataclasses.replace(index_of([4], squared_error=0.5), codes=codes)
    assert index_statistics(index, CODEBOOKS)["negligible_error"] == pytest.approx(NEGLIGIBLE_ERROR * (1 + 0.5))


def test_the_variance_of_many_vectors_is_estimated() -> None:
    count = 100_000
    codes = np.random.default_rng(0).integers(0, 2, (count, 2), np.uint8)
    index = dataclasses.replace(index_of([count], squared_error=0.0), codes=codes)
    assert index_statistics(index, CODEBOOKS)["negligible_error"] == pytest.approx(NEGLIGIBLE_ERROR * 6, rel=0.03)


def test_an_index_equal_to_the_trained_one_has_not_drifted() -> None:
    found = measure_drift(TRAINED, dict(TRAINED), changed=0.0)
    assert found == {"squared_error_growth": 0.0, "imbalance_growth": 0.0, "share_changed": 0.0, "drift": 0.0}


@pytest.mark.parametrize(
    ("error", "imbalance", "changed", "expected"),
    [
        (0.25, 1.5, 0.0, 0.25),
        (0.2, 1.8, 0.0, 0.2),
        (0.2, 1.5, 0.4, 0.1),
        (0.25, 1.8, 0.4, 0.25),
        (0.22, 1.8, 0.4, 0.2),
        (0.22, 1.5, 1.6, 0.4),
        (0.1, 1.0, 0.0, 0.0),  # a better fit is not drift
    ],
)
def test_drift_is_the_maximum_of_all_changes(error: float, imbalance: float, changed: float, expected: float) -> None:
    found = measure_drift(TRAINED, {**TRAINED, "squared_error": error, "imbalance": imbalance}, changed)
    assert found["squared_error_growth"] == pytest.approx(error / 0.2 - 1)
    assert found["imbalance_growth"] == pytest.approx(imbalance / 1.5 - 1)
    assert found["share_changed"] == changed
    assert found["drift"] == pytest.approx(expected)


def test_by_default_two_fifths_of_a_corpus_may_change() -> None:
    assert pytest.approx(IndexConfig().max_drift) == SHARE_WEIGHT * 2 / 5


@pytest.mark.parametrize("before", [0.0, 1e-15, 0.01])
def test_errors_of_codes_that_were_almost_exact_are_compared_with_the_negligible_one(before: float) -> None:
    exact = {"squared_error": before, "negligible_error": 0.1, "imbalance": 1.0}
    assert measure_drift(exact, exact, 0.0)["drift"] == 0
    assert measure_drift(exact, {**exact, "squared_error": 0.1}, 0.0)["drift"] == 0
    assert measure_drift(exact, {**exact, "squared_error": 0.15}, 0.0)["drift"] == pytest.approx(0.5)


def test_rounding_errors_of_equal_vectors_are_no_drift() -> None:
    equal = {"squared_error": 0.0, "negligible_error": 0.0, "imbalance": 1.0}
    assert measure_drift(equal, equal, 0.0)["drift"] == 0
    assert measure_drift(equal, {**equal, "squared_error": 1e-14}, 0.0)["drift"] == 0


def test_an_index_of_an_earlier_version_can_be_compared() -> None:
    """Its statistics have no negligible error."""
    found = measure_drift({"squared_error": 0.2, "imbalance": 1.5}, {**TRAINED, "squared_error": 0.25}, 0.0)
    assert found["drift"] == pytest.approx(0.25)


BEFORE = (("a", 60, ()), ("b", 40, ()))
AFTER: dict[str, tuple[tuple[tuple[str, int, tuple[int, ...]], ...], float]] = {
    "nothing": (BEFORE, 0.0),
    "shards in another order": (BEFORE[::-1], 0.0),
    "dead records": ((("a", 60, (0, 7, 9)), ("b", 40, (2,))), 0.04),
    "a new shard": ((*BEFORE, ("c", 25, ())), 0.25),
    "a new shard with dead records": ((*BEFORE, ("c", 25, (1, 2))), 0.23),
    "records that were replaced": ((("a", 60, (0, 1)), ("b", 40, ()), ("c", 2, ())), 0.04),
    "a removed shard": ((("a", 60, ()),), 0.4),
    "a shard of dead records only": ((("a", 60, ()), ("b", 40, tuple(range(40)))), 0.4),
    "the same records in other shards": ((("c", 100, ()),), 2.0),
    "an empty shard": ((*BEFORE, ("empty", 0, ())), 0.0),
}


@pytest.mark.parametrize("change", AFTER)
def test_added_and_removed_records_count_as_changed(change: str) -> None:
    """The share is relative to the 100 records that the quantizer was trained on."""
    after, share = AFTER[change]
    assert share_changed(run(*BEFORE), run(*after)) == pytest.approx(share)


def test_records_that_were_already_dead_do_not_count_as_changed() -> None:
    before = run(("a", 50, (1, 2)), ("b", 52, ()))
    assert share_changed(before, before) == 0
    assert share_changed(before, run(("a", 50, (1, 2, 3)), ("b", 52, ()))) == pytest.approx(0.01)


def test_records_that_return_count_as_added() -> None:
    before = run(("a", 50, (1, 2)), ("b", 52, ()))
    assert share_changed(before, run(("a", 50, ()), ("b", 52, ()))) == pytest.approx(0.02)
    assert share_changed(before, run(("a", 50, (3, 4)), ("b", 52, ()))) == pytest.approx(0.04)


def test_a_run_with_equal_shards_is_unchanged_and_a_resharded_one_is_not(tmp_path: Path) -> None:
    workspace, items = workspace_with_encoder(tmp_path), records(30)
    first, again, resharded = (
        commit_embeddings(workspace, items, id, shards) for id, shards in (("first", 3), ("again", 3), ("resharded", 2))
    )
    assert share_changed(first, again) == 0
    assert share_changed(first, resharded) == 2


def index_of(sizes: list[int], squared_error: float = 0.5) -> EncodedCorpus:
    """Returns an encoded corpus with partitions of these sizes."""
    count = sum(sizes)
    codes = np.zeros((count, 2), np.uint8)
    offsets = np.zeros(count + 1, np.int64)
    return EncodedCorpus(codes, np.array(sizes), np.empty(0, np.uint8), offsets, np.arange(count), squared_error)


def run(*shards: tuple[str, int, tuple[int, ...]]) -> Manifest:
    """Returns a manifest of shards, each given by hash, number of records and dead records."""
    infos = tuple(
        ShardInfo(name=f"data-{i:05d}-of-{len(shards):05d}.tfrecord", count=count, bytes=1, sha256=sha256, dead=dead)
        for i, (sha256, count, dead) in enumerate(shards)
    )
    live = sum(info.live for info in infos)
    return Manifest(
        id="run",
        encoder="tiny",
        fingerprint="f",
        preprocessing="none",
        dim=4,
        source="test",
        inputs=live,
        embedded=live,
        reused=0,
        rejected=0,
        rejected_by_reason={},
        shards=infos,
        rejects=(),
        seconds=0.0,
    )
