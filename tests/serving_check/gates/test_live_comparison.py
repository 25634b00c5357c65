"""A candidate is compared with the live release, with the tolerances of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from searchforge.config import CheckConfig
from serving_check.check import check
from serving_check.gates.live_comparison import LiveRelease, live_gates
from serving_check.schema import FigurePair, LiveComparison
from tests.indexer.tiny_corpus import TinyCorpus
from tests.serving_check.conftest import Built


def compared(shared: int = 100, overlap: float | None = 0.8, **figures: tuple[float | None, float | None]) -> Any:
    return LiveComparison(
        release="r",
        created="2026-01-01T00:00:00+00:00",
        queries=200,
        shared_queries=shared,
        overlap_at_10=overlap,
        figures=tuple(FigurePair(name=name, candidate=a, live=b) for name, (a, b) in figures.items()),
        note="",
    )


def failed(comparison: LiveComparison, **settings: Any) -> list[str]:
    return [gate.name for gate in live_gates(comparison, CheckConfig(**settings)) if not gate.passed]


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"recall_at_10": (0.94, 0.95)}, []),
        ({"recall_at_10": (0.92, 0.95)}, ["live_recall_at_10"]),
        ({"recall_at_10": (None, 0.95)}, ["live_recall_at_10"]),
        ({"recall_at_10": (0.2, None)}, []),
        ({"r_at_10": (0.70, 0.72)}, []),
        ({"r_at_10": (0.68, 0.72)}, ["live_r_at_10"]),
        ({"latency_p50_ms": (8.9, 6.0)}, []),
        ({"latency_p50_ms": (9.1, 6.0)}, ["live_latency_p50_ms"]),
        ({"latency_p50_ms": (0.9, 0.1)}, []),
        ({"searcher_bytes": (149, 100), "images": (10, 10)}, []),
        ({"searcher_bytes": (151, 100), "images": (10, 10)}, ["live_searcher_bytes"]),
        ({"searcher_bytes": (299, 100), "images": (20, 10)}, []),
        ({"searcher_bytes": (151, 100), "images": (5, 10)}, ["live_searcher_bytes", "live_images"]),
        ({"images": (2160, 2400)}, []),
        ({"images": (2159, 2400)}, ["live_images"]),
        ({"images": (20, 2400)}, ["live_images"]),
        ({"images": (None, 2400)}, ["live_images"]),
        ({"images": (20, None)}, []),
    ],
)
def test_a_regression_beyond_the_tolerance_fails(figures: dict[str, Any], expected: list[str]) -> None:
    assert failed(compared(**figures)) == expected


def test_tolerances_are_configuration() -> None:
    worse = compared(recall_at_10=(0.8, 0.95), r_at_10=(0.5, 0.7), latency_p50_ms=(50, 5))
    off = {"max_recall_drop": None, "max_r_at_10_drop": None, "max_latency_growth": None}
    assert failed(worse, **off) == []
    assert failed(worse, max_recall_drop=0.2, max_r_at_10_drop=0.1, max_latency_growth=20) == ["live_r_at_10"]
    assert failed(worse, **off, min_overlap_at_10=0.9) == ["live_overlap_at_10"]


def test_a_corpus_that_shrank_on_purpose_passes() -> None:
    fewer = compared(images=(20, 2400))
    assert failed(fewer, max_items_drop=None) == []
    [gate] = [gate for gate in live_gates(fewer, CheckConfig(), allow_removal=True) if gate.name == "live_images"]
    assert gate.passed and gate.detail == "20, below the minimum of 2,160; allowed by --allow-removal"


def test_a_smaller_corpus_is_explained_by_its_rejected_items() -> None:
    gates = live_gates(compared(images=(1200, 2400)), CheckConfig(), {"unreadable": 1190, "missing": 10})
    [detail] = [gate.detail for gate in gates if gate.name == "live_images"]
    assert detail == (
        "1,200, below the minimum of 2,160; rejected: 1,190 unreadable, 10 missing; "
        "--allow-removal accepts this for one run"
    )


def test_too_few_shared_queries_fail_no_gate() -> None:
    assert failed(compared(shared=49, r_at_10=(0.1, 0.9))) == []


def release(corpus: TinyCorpus, searcher: str, id: str = "r1", **figures: Any) -> LiveRelease:
    return LiveRelease(
        id, "2026-01-01T00:00:00+00:00", searcher, corpus.workspace.local("searchers", searcher), figures
    )


def test_both_are_queried_and_another_live_release_requires_another_check(built: Built) -> None:
    corpus, good, before = built.corpus, built.searcher, built.check()
    assert before["passed"] and before["live"] is None
    few = corpus.config.index.model_copy(update={"partitions": 20, "partitions_searched": 4, "recall_at_10": None})
    gates = corpus.config.check.model_copy(update={"min_recall_at_10": 0.1})
    config = corpus.config.model_copy(update={"index": few, "check": gates})
    poor = build_index(config, "corpus")["id"]
    live = release(corpus, good, **before["figures"])
    report = check(config, poor, live)
    found = {figure["name"]: (figure["candidate"], figure["live"]) for figure in report["live"]["figures"]}
    assert report["live"]["release"] == "r1"
    assert report["live"]["queries"] == report["live"]["shared_queries"] == 60
    assert found["recall_at_10"] == (report["figures"]["recall_at_10"], before["figures"]["recall_at_10"])
    assert found["latency_p50_ms"][0] > 0 and found["latency_p50_ms"][1] > 0
    assert report["live"]["overlap_at_10"] < 0.95
    assert {gate["name"] for gate in report["gates"] if not gate["passed"]} >= {"live_recall_at_10"}

    compared_with_poor = check(corpus.config, good, release(corpus, poor, "r2", **report["figures"]))
    assert compared_with_poor["id"] != before["id"] and compared_with_poor["passed"]
    assert check(corpus.config, good, release(corpus, poor, "r2", **report["figures"])) == compared_with_poor
    assert check(corpus.config, good, release(corpus, good, "r3", **before["figures"])) == before


def test_recall_of_other_queries_is_not_compared(built: Built) -> None:
    """The recall of queries of one kind says nothing about that of another."""
    good, before = built.searcher, built.check()
    few = built.corpus.config.index.model_copy(update={"partitions": 20, "recall_at_10": 0.9})
    other = build_index(built.corpus.config.model_copy(update={"index": few}), "corpus")["id"]
    figures = {**before["figures"], "query_kind": "image", "recall_at_10": 1.0}
    report = check(built.corpus.config, other, release(built.corpus, good, **figures))
    assert "live_recall_at_10" not in {gate["name"] for gate in report["gates"]}
    assert report["live"]["note"] == (
        "recall@10 is not compared: this check asked with held-out captions, that of the live release with images of "
        "the corpus"
    )


def test_an_unreachable_live_release_is_logged_and_fails_no_gate(
    built: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text_searcher.tflite").write_bytes(b"damaged")
    live = LiveRelease("broken", "2026-01-01T00:00:00+00:00", "another", tmp_path, {})
    report = check(built.corpus.config, built.searcher, live)
    assert report["passed"]
    assert "could not be queried" in report["live"]["note"]
    assert "could not be queried" in caplog.text
