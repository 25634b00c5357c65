"""Draws the charts of a check's page: the tuner's trade-off, latencies, and the parts of searcher files."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from searchforge.reporting.charts import LINE, TEXT_COLOUR, is_number, style_axes, svg
from searchforge.reporting.pareto import pareto
from serving_check.schema import Histogram

PARTS = {
    "model": "#3b82d0",
    "vocabulary": "#8b6fd6",
    "codes": "#d9822b",
    "centroids_and_codebooks": "#2a9d8f",
    "metadata": "#c2557e",
    "other": "#8a8f98",
}
"""Colours of the parts of a searcher file, in stacking order."""

_NUMBERS = ("search_ms", "recall_at_10", "code_bytes", "bytes_per_image")
_WIDE = (4.8, 2.9)
_BAR = (7.2, 0.3)


@dataclass(frozen=True)
class Tradeoff:
    """The chart of recall by latency, and its legend.

    Attributes:
      fronts: Colour, bytes per code and index bytes per item of each code size, in ascending order.
      chosen: Point that the tuner chose; None if it is not among the points.
    """

    svg: Markup
    fronts: list[tuple[str, float, float]]
    chosen: Mapping[str, Any] | None


def tradeoff(content: Mapping[str, Any] | None) -> Tradeoff | None:
    """Draws recall by latency, with a Pareto front for each code size; returns None without points.

    Args:
      content: Contents of tradeoff.json.
    """
    points, chosen = (content or {}).get("points"), (content or {}).get("chosen")
    drawn = [point for point in points if _is_point(point)] if isinstance(points, Sequence) else []
    if not drawn:
        return None
    sizes = sorted({point["code_bytes"] for point in drawn})
    fronts = {size: pareto([point for point in drawn if point["code_bytes"] == size]) for size in sizes}
    colours = dict(zip(sizes, _ramp(len(sizes)), strict=True))
    mark = next((point for point in drawn if isinstance(chosen, Mapping) and chosen and _matches(point, chosen)), None)
    return Tradeoff(
        svg=svg(partial(_draw_fronts, fronts=fronts, colours=colours, mark=mark), "tradeoff", _WIDE),
        fronts=[(colours[size], size, front[-1]["bytes_per_image"]) for size, front in fronts.items()],
        chosen=mark,
    )


def latency(name: str, histogram: Histogram, marks: Mapping[str, float]) -> Markup | None:
    """Draws the histogram of search times; returns None if no search was counted.

    Args:
      name: Name of the chart.
      marks: Milliseconds of vertical lines, by label.
    """
    edges, counts = histogram.edges, histogram.counts
    if len(edges) != len(counts) + 1 or not any(counts) or not all(map(is_number, edges)):
        return None
    return svg(partial(_draw_latency, edges=edges, counts=counts, marks=marks), f"latency of {name}", _WIDE)


def bar(parts: Mapping[str, int], scale: int) -> Markup:
    """Draws the parts of a file side by side; `scale` is the number of bytes that fill the whole width."""
    draw = partial(_draw_bar, parts=parts, scale=max(1, scale))
    return svg(draw, "parts of a file", _BAR, keep_aspect_ratio=False)


def colour(part: str) -> str:
    """Returns the colour of a part of a searcher file."""
    return PARTS.get(part, PARTS["other"])


def _draw_fronts(
    axes: Axes, fronts: Mapping[float, list[dict[str, Any]]], colours: Mapping[float, str], mark: Any
) -> None:
    for size, front in fronts.items():
        x, y = [[point[name] for point in front] for name in ("search_ms", "recall_at_10")]
        strong = mark is not None and mark["code_bytes"] == size
        axes.plot(x, y, color=colours[size], marker=".", markersize=5, linewidth=2.2 if strong else 1.3)
    if mark is not None:
        place = mark["search_ms"], mark["recall_at_10"]
        axes.plot(*place, "o", markersize=11, markerfacecolor="none", markeredgecolor=TEXT_COLOUR, markeredgewidth=1.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel("expected milliseconds per search", color=TEXT_COLOUR)
    axes.set_ylabel("recall@10", color=TEXT_COLOUR)
    style_axes(axes)


def _draw_latency(axes: Axes, edges: Sequence[float], counts: Sequence[int], marks: Mapping[str, float]) -> None:
    axes.stairs(counts, edges, fill=True, color=LINE)
    full = [place for place, count in enumerate(counts) if count]
    low, high = edges[full[0]], edges[full[-1] + 1]
    room = 0.04 * (high - low)
    axes.set_xlim(low - room, high + room)
    top = max(counts)
    axes.set_ylim(0, 1.22 * top)
    for place, (label, value) in enumerate(sorted(marks.items(), key=lambda mark: mark[1])):
        value = min(max(value, low), high)
        axes.plot([value, value], [0, 1.04 * top], color=TEXT_COLOUR, linewidth=1, linestyle=(0, (3, 2)))
        axes.text(value, (1.07 + 0.07 * (place % 2)) * top, label, color=TEXT_COLOUR, ha="center", fontsize=8)
    axes.set_xlabel("milliseconds per search", color=TEXT_COLOUR)
    axes.set_ylabel("queries", color=TEXT_COLOUR)
    style_axes(axes)
    axes.grid(False, axis="x")


def _draw_bar(axes: Axes, parts: Mapping[str, int], scale: int) -> None:
    start = 0
    for part, count in parts.items():
        axes.barh(0, count, left=start, height=1, color=colour(part))
        start += count
    axes.set_xlim(0, scale)
    axes.set_ylim(-0.5, 0.5)
    axes.set_axis_off()
    axes.set_position((0, 0, 1, 1))


def _ramp(count: int) -> list[str]:
    """Returns equally bright colours from blue over purple to orange, legible on light and dark backgrounds."""
    ramp = []
    for place in range(count):
        hue = 0.59 + 0.49 * place / max(1, count - 1)
        red, green, blue = colorsys.hls_to_rgb(hue % 1, 0.56, 0.6)
        ramp.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return ramp


def _is_point(point: Any) -> bool:
    if not isinstance(point, Mapping) or not all(is_number(point.get(name)) for name in _NUMBERS):
        return False
    return bool(point["search_ms"] > 0) and math.isfinite(point["recall_at_10"])


def _matches(point: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    return all(point.get(key) == value for key, value in chosen.items())
