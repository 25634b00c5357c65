"""The charts of a check's page show the data, and no data keeps them from being drawn."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from serving_check.report import charts
from serving_check.schema import Histogram
from tests.serving_check.report import realistic_reports

SVG = "{http://www.w3.org/2000/svg}"


def point(**changes: Any) -> dict[str, Any]:
    return {"search_ms": 1.0, "recall_at_10": 0.9, "code_bytes": 16, "bytes_per_image": 21.2, **changes}


def texts(svg: str) -> set[str | None]:
    return {element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")}


def test_the_trade_off_has_a_front_for_each_size_and_marks_the_chosen_point() -> None:
    content = realistic_reports.passed().tradeoff
    assert content
    drawn = charts.tradeoff(content)
    assert drawn and drawn.chosen
    assert [size for _, size, _ in drawn.fronts] == [16, 32, 64, 96]
    assert len({colour for colour, _, _ in drawn.fronts}) == 4
    assert all(drawn.svg.count(colour) for colour, _, _ in drawn.fronts)
    assert {key: drawn.chosen[key] for key in content["chosen"]} == content["chosen"]
    assert {"recall@10", "expected milliseconds per search", "0.1", "100%"} <= texts(drawn.svg)
    assert charts.tradeoff(content) == drawn


@pytest.mark.parametrize("chosen", [None, {}, "64", {"code_bytes": 99}])
def test_a_choice_that_is_not_among_the_points_is_not_marked(chosen: Any) -> None:
    drawn = charts.tradeoff({"points": [point()], "chosen": chosen})
    assert drawn and drawn.chosen is None


@pytest.mark.parametrize(
    "content",
    [None, {}, {"points": []}, {"points": None}, {"points": 3}, {"points": "text"}, {"points": [point(search_ms=0)]}],
)
def test_a_trade_off_without_points_is_not_drawn(content: Any) -> None:
    assert charts.tradeoff(content) is None


@pytest.mark.parametrize("odd", [None, "text", {}, point(search_ms="1"), point(recall_at_10=math.nan)])
def test_invalid_points_are_left_out(odd: Any) -> None:
    drawn = charts.tradeoff({"points": [odd, point(code_bytes=8)], "chosen": None})
    assert drawn and [size for _, size, _ in drawn.fronts] == [8]


def test_latencies_are_drawn_with_their_percentiles_even_beyond_the_last_bar() -> None:
    histogram = Histogram(edges=(0.0, 1.0, 2.0, 3.0), counts=(0, 5, 1))
    svg = charts.latency("text", histogram, {"p50": 1.4, "p99": 700.0})
    assert svg and {"p50", "p99", "milliseconds per search", "queries"} <= texts(svg)
    assert charts.latency("text", histogram, {"p50": 1.4, "p99": 700.0}) == svg


@pytest.mark.parametrize(
    "histogram",
    [
        Histogram(edges=(), counts=()),
        Histogram(edges=(0.0, 1.0), counts=(0,)),
        Histogram(edges=(0.0, 1.0), counts=(1, 2)),
        Histogram(edges=(0.0, math.inf), counts=(1,)),
    ],
)
def test_latencies_that_were_not_counted_are_not_drawn(histogram: Histogram) -> None:
    assert charts.latency("text", histogram, {}) is None


def test_the_parts_of_a_file_are_as_wide_as_they_are_large() -> None:
    parts = {"model": 600, "codes": 300, "of another version": 100}
    root = ElementTree.fromstring(charts.bar(parts, 2000))
    width = float(root.attrib["viewBox"].split()[2])
    shown = {
        element.attrib["style"].removeprefix("fill: "): _width(element.attrib["d"])
        for element in root.iter(f"{SVG}path")
        if "fill: #" in element.attrib.get("style", "")
    }
    expected = {charts.colour(name): width * count / 2000 for name, count in parts.items()}
    assert shown == {colour: pytest.approx(expected[colour], rel=0.02) for colour in expected}
    assert charts.colour("of another version") == charts.colour("other")


def test_a_file_without_parts_is_an_empty_bar() -> None:
    assert ElementTree.fromstring(charts.bar({}, 0)).tag == f"{SVG}svg"


def _width(path: str) -> float:
    """Returns the width of a rectangle from its outline."""
    numbers = [float(word) for word in path.split() if word[0].isdigit() or word[0] == "-"]
    return max(numbers[::2]) - min(numbers[::2])
