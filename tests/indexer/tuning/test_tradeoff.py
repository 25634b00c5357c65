"""The trade-off is written as JSON and as an SVG chart."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from indexer.tuning.parameters import IndexParameters
from indexer.tuning.tradeoff import TRADEOFF_JSON, TRADEOFF_SVG, write_tradeoff

SVG = "{http://www.w3.org/2000/svg}"


def test_the_json_contains_the_chosen_parameters_and_every_point(tmp_path: Path) -> None:
    write_tradeoff(points(), CHOSEN, tmp_path)
    content = json.loads((tmp_path / TRADEOFF_JSON).read_text())
    assert content == {"chosen": CHOSEN.to_json(), "points": points()}


def test_equal_points_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tradeoff(points(), CHOSEN, tmp_path / folder)
    for name in (TRADEOFF_JSON, TRADEOFF_SVG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_chart_has_a_line_per_code_size_and_marks_the_chosen_point(tmp_path: Path) -> None:
    texts = legend(points(), CHOSEN, tmp_path)
    assert texts == ["16 B per code (21 B per image)", "32 B per code (37 B per image)", "chosen"]


def test_the_chart_of_a_single_point_is_drawn(tmp_path: Path) -> None:
    only = point(ms=1, recall=0.9, code_bytes=32, searched=3)
    assert legend([only], CHOSEN, tmp_path) == ["32 B per code (37 B per image)", "chosen"]


@pytest.mark.parametrize("other", [{"code_bytes": 16}, {"partitions": 21}, {"searched": 4}])
def test_a_point_with_other_parameters_is_not_marked(tmp_path: Path, other: dict[str, int]) -> None:
    parameters = {"code_bytes": 32, "searched": 3, **other}
    assert "chosen" not in legend([point(ms=1, recall=0.9, **parameters)], CHOSEN, tmp_path)


CHOSEN = IndexParameters(code_bytes=32, partitions=20, partitions_searched=3, lut_type="float")


def points() -> list[dict[str, Any]]:
    """Returns three points for each of two code sizes."""
    return [
        point(ms=1 + searched + code_bytes / 100, recall=0.3 * searched, code_bytes=code_bytes, searched=searched)
        for code_bytes in (32, 16)
        for searched in (1, 2, 3)
    ]


def point(ms: float, recall: float, code_bytes: int = 16, partitions: int = 20, searched: int = 1) -> dict[str, Any]:
    """Returns a point in the form of `TradeoffPoint.to_json`."""
    return {
        **IndexParameters(code_bytes, partitions, searched, "float").to_json(),
        "recall_at_10": recall,
        "partition_recall_at_10": 1.0,
        "bytes_per_image": code_bytes + 5.25,
        "search_ms": ms,
    }


def legend(drawn: list[dict[str, Any]], chosen: IndexParameters, folder: Path) -> list[str]:
    """Draws points and returns the lines of the chart's legend."""
    write_tradeoff(drawn, chosen, folder)
    root = ET.parse(folder / TRADEOFF_SVG).getroot()
    assert root.tag == f"{SVG}svg"
    (group,) = (element for element in root.iter(f"{SVG}g") if element.get("id") == "legend_1")
    return [text.text or "" for text in group.iter(f"{SVG}text")]
