"""Writes the trade-off of recall against size and latency that the tuner measured, as JSON and as an SVG chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indexer.tuning.parameters import IndexParameters
from searchforge.reporting.pareto import pareto

TRADEOFF_JSON, TRADEOFF_SVG = "tradeoff.json", "tradeoff.svg"
"""File names in a searcher's folder."""


def write_tradeoff(points: Sequence[dict[str, Any]], chosen: IndexParameters, folder: Path) -> None:
    """Writes both files; equal points give equal bytes.

    Args:
      points: `TradeoffPoint.to_json` of every point.
      chosen: Parameters to mark in the chart.
    """
    content = {"chosen": chosen.to_json(), "points": list(points)}
    (folder / TRADEOFF_JSON).write_text(json.dumps(content, indent=1) + "\n")
    _draw(points, chosen, folder / TRADEOFF_SVG)


def _draw(points: Sequence[dict[str, Any]], chosen: IndexParameters, path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "searchforge", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        sizes = sorted({point["code_bytes"] for point in points})
        colors = matplotlib.colormaps["viridis"]
        for rank, size in enumerate(sizes):
            front = pareto([point for point in points if point["code_bytes"] == size])
            label = f"{size} B per code ({front[-1]['bytes_per_image']:.0f} B per image)"
            color = colors(0.9 * rank / max(1, len(sizes) - 1))
            axes.plot(_column(front, "search_ms"), _column(front, "recall_at_10"), label=label, color=color, marker=".")
        for point in points:
            if {key: point[key] for key in chosen.to_json()} == chosen.to_json():
                axes.plot(
                    point["search_ms"], point["recall_at_10"], "o", ms=11, mfc="none", mec="crimson", label="chosen"
                )
        axes.set_xscale("log")
        axes.set_xlabel("expected milliseconds per search, one thread")
        axes.set_ylabel("recall@10")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None})


def _column(points: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [point[name] for point in points]
