"""Configured parameters are used, limits hold, and the device reaches the reported recall."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from indexer.__main__ import main
from indexer.build import build_index, summary
from indexer.corpus.queries import choose_texts
from indexer.tuning.tradeoff import TRADEOFF_JSON
from searchforge.artifacts.searcher import INDEX, TEXT_SEARCHER
from searchforge.config import Config, load_config
from searchforge.errors import JobError
from serving_check.formats.leveldb_reader import read_table
from serving_check.measurement.search import Searcher
from tests.indexer.tiny_corpus import DIM, IMAGES, TinyCorpus, commit_embeddings, make_corpus, tiny_encoder

K = 10

Build = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return make_corpus(tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="module")
def build(corpus: TinyCorpus) -> Build:
    """Returns a function that builds with given settings, or returns an existing build with them."""
    return lambda embeddings="corpus", **settings: build_index(_with(corpus.config, **settings), embeddings)


def test_configured_parameters_are_used(build: Build) -> None:
    fixed = {"code_bytes": 5, "partitions": 7, "partitions_searched": 3, "lut_type": "int16"}
    report = build(**fixed, recall_at_10=None)
    assert report["parameters"] == fixed
    assert report["sizes"]["codes"] == 5 * IMAGES


def test_parameters_that_are_not_configured_are_tuned(build: Build) -> None:
    assert build(partitions_searched=2, recall_at_10=None)["parameters"]["partitions_searched"] == 2


def test_the_device_searches_the_configured_number_of_partitions(corpus: TinyCorpus, build: Build) -> None:
    """A query finds exactly the items of its nearest partitions."""
    report = build(recall_at_10=None, code_bytes=4, partitions=8, partitions_searched=2, query_aware=False)
    sizes = _partition_sizes(corpus, report)
    with _searcher(corpus, report) as searcher:
        counts = {len(searcher.search_text(f"w{i}", IMAGES)) for i in range(40)}
    pairs = {a + b for i, a in enumerate(sizes) for b in sizes[:i]}
    assert len(counts) > 1
    assert counts <= pairs


@pytest.mark.parametrize(
    "settings",
    [
        {"recall_at_10": 0.7, "partitions": 8},
        {"recall_at_10": None, "code_bytes": 4, "partitions": 8, "partitions_searched": 2, "query_aware": False},
        {"recall_at_10": None, "code_bytes": 6, "partitions": 8, "partitions_searched": 4, "lut_type": "int8"},
    ],
)
def test_the_task_library_reaches_the_recall_in_the_report(
    corpus: TinyCorpus, build: Build, settings: dict[str, Any]
) -> None:
    config = _with(corpus.config, **settings)
    report = build(**settings)
    promised = report["training"]["tuning"]["recall_at_10"]["verification"]
    texts = choose_texts(config)
    assert texts
    assert promised["queries"] == len(texts.verification) == IMAGES // 4
    assert promised["recall_at_10"] < 0.95  # otherwise the comparison would mean little
    measured = _recall(corpus, report, texts.verification)
    assert measured == pytest.approx(promised["recall_at_10"], abs=0.02)
    low, high = promised["interval"]
    assert low < promised["recall_at_10"] < high


def test_the_required_recall_is_reached_on_the_tuning_queries(build: Build) -> None:
    report = build(recall_at_10=0.9)
    assert report["training"]["tuning"]["query_kind"] == "caption"
    assert report["training"]["tuning"]["recall_at_10"]["tuning"]["recall_at_10"] >= 0.9


def test_the_summary_contains_the_recall(build: Build) -> None:
    report = build(recall_at_10=0.9)
    recall = report["training"]["tuning"]["recall_at_10"]["verification"]["recall_at_10"]
    assert f"recall@10 {recall:.3f}" in summary(report)


@pytest.mark.parametrize(
    "limit", [{"max_bytes_per_image": 1.0}, {"max_index_size": 1000}, {"max_latency_ms": 0.01}, {"code_bytes": 1}]
)
def test_an_infeasible_recall_fails_and_shows_the_trade_off(
    corpus: TinyCorpus, build: Build, limit: dict[str, Any]
) -> None:
    before = corpus.workspace.ids("searchers")
    ((name, value),) = limit.items()
    with pytest.raises(JobError) as failed:
        build(**limit)
    lines = str(failed.value).splitlines()
    assert lines[0].startswith("no setting of the index reaches recall@10 of 0.95 within ")
    assert f"{name} {value}" in lines[0]
    points = [line for line in lines if line.startswith("  recall@10 ")]
    assert points
    assert all(" bytes per item, " in line and " ms per search " in line for line in points)
    assert lines[-1].startswith("lower index.recall_at_10, or raise index.")
    assert corpus.workspace.ids("searchers") == before
    assert list((Path(corpus.workspace.root) / ".staging").iterdir()) == []


def test_a_recall_that_only_small_codes_reach_within_the_limit_is_reached(build: Build) -> None:
    """Codes of 16 bytes exceed this limit; those of 8 do not, and are sufficient."""
    report = build(recall_at_10=0.9, max_bytes_per_image=95.0)
    assert report["parameters"]["code_bytes"] == 8
    assert report["bytes_per_image"] <= 95


def test_an_error_shows_the_smallest_index_that_reaches_the_recall(corpus: TinyCorpus, build: Build) -> None:
    tradeoff = json.loads((_folder(corpus, build(recall_at_10=0.9)) / TRADEOFF_JSON).read_text())["points"]
    smallest = min(point["bytes_per_image"] for point in tradeoff if point["recall_at_10"] >= 0.9)
    with pytest.raises(JobError, match=f"smallest index that reaches it: .* {smallest:.0f} bytes per item"):
        build(recall_at_10=0.9, max_bytes_per_image=1.0)


def test_without_a_required_recall_the_highest_within_the_size_limit_is_built(build: Build) -> None:
    limit = {"max_bytes_per_image": 95.0}
    best = build(recall_at_10=None, **limit)
    assert best["bytes_per_image"] <= 95
    assert _tuned(best) >= _tuned(build(recall_at_10=None, code_bytes=8, **limit))
    with pytest.raises(JobError, match="code_bytes 16"):
        build(recall_at_10=None, code_bytes=16, **limit)


def test_without_a_required_recall_the_highest_within_the_latency_limit_is_built(build: Build) -> None:
    """Within a latency limit, larger codes leave time for fewer partitions."""
    best = build(recall_at_10=None, max_latency_ms=0.074)
    assert _tuned(best) >= _tuned(build(recall_at_10=None, max_latency_ms=0.074, code_bytes=8))


def test_the_limit_of_the_index_size_includes_metadata(corpus: TinyCorpus, build: Build) -> None:
    noise = np.random.default_rng(0)
    records = [dataclasses.replace(r, metadata={"noise": noise.bytes(200).hex()}) for r in corpus.records]
    commit_embeddings(corpus.workspace, records, "noisy")
    with pytest.raises(JobError, match="max_index_size"):
        build("noisy", recall_at_10=0.9, max_index_size=60_000)


def test_the_recipe_uses_the_parameters_of_2022(corpus: TinyCorpus, build: Build) -> None:
    report = build(preset="recipe2022")
    assert report["parameters"] == {"code_bytes": DIM, "partitions": 20, "partitions_searched": 4, "lut_type": "int8"}
    assert report["training"]["tuning"] == {}
    with _searcher(corpus, report) as searcher:
        right = [searcher.search_text(f"w{i}", 1)[0].id == f"{i:05d}.png" for i in range(40)]
    assert sum(right) >= 0.6 * len(right)  # the recall that a check requires of the recipe


def test_compression_changes_the_size_but_no_value(corpus: TinyCorpus, build: Build) -> None:
    reports = [build(recall_at_10=0.9, compression=compression) for compression in (True, False)]
    on, off = ((_folder(corpus, report) / INDEX).read_bytes() for report in reports)
    assert len(on) < len(off)
    first, second = dict(read_table(on)), dict(read_table(off))
    infos = [json.loads(table.pop(b"USER_INFO")) for table in (first, second)]
    assert first == second
    assert [info | {"searcher": ""} for info in infos] == [infos[0] | {"searcher": ""}] * 2


@pytest.mark.parametrize(
    ("text", "size"), [("1MB", 10**6), ("1 MiB", 2**20), ("1.5kb", 1500), ("70000", 70_000), (70_000, 70_000)]
)
def test_a_size_may_be_given_as_text(text: str | int, size: int) -> None:
    assert load_config(None, {"index.max_index_size": text}).index.max_index_size == size


def test_command_options_set_configuration_keys(corpus: TinyCorpus) -> None:
    options = {
        "--embeddings": "corpus",
        "--encoder": "tiny",
        "--captions": corpus.config.data.captions[0],
        "--images": str(corpus.config.data.images),
        "--preset": "best",
        "--recall-at-10": "0.2",
        "--max-latency-ms": "1.5",
        "--max-index-size": "1MB",
        "--code-bytes": "4",
        "--partitions": "5",
        "--partitions-searched": "2",
        "--reuse-from": "none",
        "--set": "index.lut_type=int16",
    }
    arguments = [text for option in options.items() for text in option]
    result = CliRunner().invoke(main, ["--workspace", corpus.workspace.root, "--json", *arguments])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    expected = {"preset": "best", "recall_at_10": 0.2, "max_latency_ms": 1.5, "max_index_size": 10**6}
    assert {key: report["config"][key] for key in expected} == expected
    assert report["parameters"] == {"code_bytes": 4, "partitions": 5, "partitions_searched": 2, "lut_type": "int16"}
    assert (report["encoder"], report["training"]["tuning"]["query_kind"]) == ("tiny", "caption")


def test_the_searcher_to_reuse_is_an_option_of_the_command(corpus: TinyCorpus) -> None:
    arguments = ["--workspace", corpus.workspace.root, "--embeddings", "corpus", "--reuse-from", "missing"]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "searchers/missing is not in workspace" in result.output) == (2, True)


def test_a_failed_command_sets_the_exit_code_and_prints_a_message(corpus: TinyCorpus) -> None:
    arguments = ["--workspace", corpus.workspace.root, "--embeddings", "corpus", "--reuse-from", "none"]
    result = CliRunner().invoke(main, [*arguments, "--max-index-size", "1KB"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        "error: no setting of the index reaches recall@10 of 0.95 within max_latency_ms 2.0, max_index_size 1000"
        in (result.output)
    )


def _with(config: Config, **settings: Any) -> Config:
    """Returns the configuration with these index settings and without reuse of quantizers."""
    values = {"workspace": config.workspace, "data.captions": config.data.captions, "data.images": config.data.images}
    return load_config(
        None, {**values, "index.reuse_from": "none", **{f"index.{key}": settings[key] for key in settings}}
    )


def _tuned(report: dict[str, Any]) -> float:
    recall: float = report["training"]["tuning"]["recall_at_10"]["tuning"]["recall_at_10"]
    return recall


def _recall(corpus: TinyCorpus, report: dict[str, Any], texts: tuple[str, ...]) -> float:
    """Returns the Task Library's recall@10."""
    encoder = tiny_encoder()[0]
    vectors = np.stack([record.embedding for record in corpus.records])
    ids = np.array([record.id for record in corpus.records])
    found = 0
    with _searcher(corpus, report) as searcher:
        for text in texts:
            exact = ids[np.argsort(-(vectors @ encoder.text(text)))[:K]]
            found += len(set(exact) & {hit.id for hit in searcher.search_text(text, K)})
    return found / (K * len(texts))


def _partition_sizes(corpus: TinyCorpus, report: dict[str, Any]) -> list[int]:
    table = read_table((_folder(corpus, report) / INDEX).read_bytes())
    return [len(value) // report["parameters"]["code_bytes"] for key, value in table if key.startswith(b"E_")]


def _folder(corpus: TinyCorpus, report: dict[str, Any]) -> Path:
    return corpus.workspace.local("searchers", report["id"])


def _searcher(corpus: TinyCorpus, report: dict[str, Any]) -> Searcher:
    return Searcher(_folder(corpus, report) / TEXT_SEARCHER)
