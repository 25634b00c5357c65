"""Figures are written with their unit, and a change is marked as better or worse."""

from __future__ import annotations

import math

import pytest

from serving_check.report.figures import change, formatted, interval, label

SPACE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("recall_at_10", 0.95347, "95.3 %"),
        ("image_recall_at_10", 1.0, "100.0 %"),
        ("r_at_1", 0.0, "0.0 %"),
        ("exact_r_at_5", 0.00042, "0.04 %"),
        ("latency_p50_ms", 4.731, "4.73 ms"),
        ("image_latency_p99_ms", 21.04, "21.0 ms"),
        ("load_seconds", 0.0468, "0.05 s"),
        ("bytes_per_image", 87.879, "87.9 B"),
        ("index_bytes", 953_758, "953.8 kB"),
        ("searcher_bytes", 23_902_922, "23.9 MB"),
        ("memory_bytes", 1_204_000_000, "1.20 GB"),
        ("images", 123_287, "123,287"),
        ("median_rank", 3.5, "3.5"),
        ("embedded_again_cosine", 0.99987, "0.9999"),
        ("query_kind", "<b>", "<b>"),
        ("recall_at_10", None, "–"),
        ("latency_p50_ms", math.nan, "–"),
    ],
)
def test_a_figure_has_its_unit(name: str, value: object, expected: str) -> None:
    assert formatted(name, value).replace(SPACE, " ") == expected


def test_an_interval_has_its_unit_once_where_both_ends_share_it() -> None:
    assert interval("recall_at_10", (0.931, 0.972)).replace(SPACE, " ") == "93.1 to 97.2 %"
    assert interval("memory_bytes", (900_000.0, 1_100_000.0)).replace(SPACE, " ") == "900.0 kB to 1.1 MB"
    assert interval("median_rank", (3.0, 5.0)) == "3 to 5"


@pytest.mark.parametrize(
    ("name", "candidate", "live", "expected", "better"),
    [
        ("recall_at_10", 0.95, 0.94, "+1.0 points", True),
        ("r_at_10", 0.70, 0.75, "−5.0 points", False),
        ("latency_p50_ms", 4.5, 5.0, "−10.0 %", True),
        ("searcher_bytes", 33e6, 30e6, "+10.0 %", False),
        ("median_rank", 4, 5, "−20.0 %", True),
        ("recall_at_10", 0.95001, 0.95002, "no change", None),
        ("something_else", 3, 2, "+50.0 %", None),
        ("load_seconds", 1.0, 0.0, "+1", False),
    ],
)
def test_a_change_is_better_or_worse(
    name: str, candidate: float, live: float, expected: str, better: bool | None
) -> None:
    written, found = change(name, candidate, live)
    assert (written.replace(SPACE, " "), found) == (expected, better)


def test_every_figure_has_a_label_even_an_unknown_one() -> None:
    assert label("recall_at_10") == "Recall@10"
    assert label("image_latency_p50_ms") == "Latency, median, image searcher"
    assert label("live_r_at_10") == "R@10, compared with the live release"
    assert label("images") == "Items of the corpus"
    assert label("some_figure") == "Some figure"
    assert label("<b>") == "<b>"
    assert label("_") == "_"
