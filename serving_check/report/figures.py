"""Formats figures for display: labels, units, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Callable

LABELS = {
    "recall_at_1": "Recall@1",
    "recall_at_10": "Recall@10",
    "recall_at_100": "Recall@100",
    "r_at_1": "R@1",
    "r_at_5": "R@5",
    "r_at_10": "R@10",
    "exact_r_at_1": "R@1 of exact search",
    "exact_r_at_5": "R@5 of exact search",
    "exact_r_at_10": "R@10 of exact search",
    "median_rank": "Median rank of the query's own item",
    "own_or_equal_at_10": "Own item, or its equal, in the first ten",
    "overlap_at_10": "Overlap of the first ten",
    "latency_p50_ms": "Latency, median",
    "latency_p95_ms": "Latency, 95th percentile",
    "latency_p99_ms": "Latency, 99th percentile",
    "encoding_p50_ms": "Encoding of the query, median",
    "threads_p50_ms": "Latency on several threads, median",
    "load_seconds": "Time to open",
    "memory_bytes": "Memory with the searcher open",
    "index_bytes": "Index",
    "bytes_per_image": "Index size per item",
    "searcher_bytes": "Larger searcher file",
    "images": "Items of the corpus",
    "gallery": "Items that are searched",
    "query_kind": "Kind of query",
    "queries": "Queries",
    "queries_seen_by_tuner": "Queries that the tuner saw",
    "images_sampled": "Images sampled",
    "images_readable": "Images that could be read",
    "threads": "Threads",
    "code_error": "Quantization error, median",
    "embedded_again_cosine": "Cosine of items embedded again, median",
}
"""Labels by name of the figure, without the prefix of the image searcher, in the order of display."""

_IMAGE, _LIVE = "image_", "live_"
_SHARES = ("recall_at_", "r_at_", "exact_r_at_", "own_or_equal_at_", "overlap_at_")


def label(name: str) -> str:
    """Returns the label of a figure; an unknown figure's own name, as words."""
    if name.startswith(_LIVE):
        return f"{label(name.removeprefix(_LIVE))}, compared with the live release"
    if name in LABELS:
        return LABELS[name]
    if base(name) in LABELS:
        return f"{LABELS[base(name)]}, image searcher"
    words = name.replace("_", " ").strip() or name
    return words[:1].upper() + words[1:]


def base(name: str) -> str:
    """Returns the name of a figure without the prefix of the image searcher."""
    return name.removeprefix(_IMAGE)


def is_share(name: str) -> bool:
    """Returns whether a figure lies between 0 and 1 and is shown in percent."""
    return base(name).startswith(_SHARES)


def formatted(name: str, value: object) -> str:
    """Returns the value of a figure with its unit; a dash if it was not measured."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return _formatter(name)(value)


def interval(name: str, ends: tuple[float, float]) -> str:
    """Returns a 95 percent interval; a unit that both ends share is written once."""
    low, high = (formatted(name, end) for end in ends)
    (start, _, unit), other = low.partition("\N{NO-BREAK SPACE}"), high.partition("\N{NO-BREAK SPACE}")[2]
    return f"{start if unit == other else low} to {high}"


def size(value: float) -> str:
    """Returns bytes in a suitable decimal unit."""
    for unit, scale, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if abs(value) >= scale:
            return f"{value / scale:.{digits}f}\N{NO-BREAK SPACE}{unit}"
    return f"{value:.3g}\N{NO-BREAK SPACE}B"


def percent(value: float) -> str:
    """Returns a share in percent, with at least one significant digit."""
    return f"{100 * value:{'.1g' if 0 < abs(value) < 0.001 else '.1f'}}\N{NO-BREAK SPACE}%"


def higher_is_better(name: str) -> bool | None:
    """Returns which direction is better; None if neither is."""
    if is_share(name):
        return True
    if base(name) == "median_rank" or base(name).endswith(("_ms", "_seconds", "_bytes", "bytes_per_image")):
        return False
    return None


def change(name: str, candidate: float, live: float) -> tuple[str, bool | None]:
    """Returns by how much a figure changed, and whether it improved; None if it did neither."""
    difference = candidate - live
    if formatted(name, candidate) == formatted(name, live):
        return "no change", None
    if is_share(name):
        text = f"{100 * difference:+.1f} points"
    elif live:
        text = f"{100 * difference / abs(live):+.1f}\N{NO-BREAK SPACE}%"
    else:
        text = f"{difference:+.4g}"
    direction = higher_is_better(name)
    return text.replace("-", "\N{MINUS SIGN}"), None if direction is None else (difference > 0) == direction


def _formatter(name: str) -> Callable[[float], str]:
    if is_share(name):
        return percent
    if name.endswith("_ms"):
        return _milliseconds
    if name.endswith("_seconds"):
        return _seconds
    if name.endswith(("_bytes", "bytes_per_image")):
        return size
    return _plain


def _milliseconds(value: float) -> str:
    return f"{value:.{2 if abs(value) < 10 else 1}f}\N{NO-BREAK SPACE}ms"


def _seconds(value: float) -> str:
    return f"{value:.{2 if abs(value) < 10 else 0}f}\N{NO-BREAK SPACE}s"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
