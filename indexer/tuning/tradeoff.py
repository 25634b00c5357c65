"""The trade-off that the tuner saw, recall against size and latency: as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indexer.tuning.settings import Setting
from searchforge.reporting.pareto import pareto

CURVE, PICTURE = "tradeoff.json", "tradeoff.svg"
"""Files of a searcher."""


def write_curve(points: Sequence[dict[str, Any]], chosen: Setting, folder: Path) -> None:
    """Writes both files; equal points give equal bytes.

    Args:
      points: of the tuner, as JSON.
      chosen: which is marked.
    """
    content = {"chosen": chosen.to_json(), "points": list(points)}
    (folder / CURVE).write_text(json.dumps(content, indent=1) + "\n")
    _draw(points, chosen, folder / PICTURE)


def _draw(points: Sequence[dict[str, Any]], chosen: Setting, path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "searchforge", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        sizes = sorted({point["code_bytes"] for point in points})
        colours = matplotlib.colormaps["viridis"]
        for place, size in enumerate(sizes):
            front = pareto([point for point in points if point["code_bytes"] == size])
            label = f"{size} B a code ({front[-1]['bytes_per_image']:.0f} B an image)"
            colour = colours(0.9 * place / max(1, len(sizes) - 1))
            axes.plot(
                _column(front, "search_ms"), _column(front, "recall_at_10"), label=label, color=colour, marker="."
            )
        for point in points:
            if {key: point[key] for key in chosen.to_json()} == chosen.to_json():
                axes.plot(
                    point["search_ms"], point["recall_at_10"], "o", ms=11, mfc="none", mec="crimson", label="chosen"
                )
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds a search, expected, one thread")
        axes.set_ylabel("recall@10")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None})


def _column(points: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [point[name] for point in points]
