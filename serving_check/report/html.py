"""Renders the report of a check as one HTML page; see searchforge.reporting.page for what all pages promise.

This module prepares what the templates show; each section of the page is a template of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from markupsafe import Markup

from searchforge.reporting.charts import is_number, training_curves
from searchforge.reporting.page import Thumbnails, render_page
from serving_check.report import charts, figures
from serving_check.report.figures import formatted
from serving_check.report.gates import gate_row
from serving_check.schema import HostileQuery, Report, conditions

_CARDS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "recall_at_10": ("Recall@10", "", (("recall_at_1", "@1"), ("recall_at_100", "@100"))),
    "image_recall_at_10": (
        "Recall@10",
        "image searcher",
        (("image_recall_at_1", "@1"), ("image_recall_at_100", "@100")),
    ),
    "r_at_10": ("R@10", "", (("r_at_1", "@1"), ("r_at_5", "@5"), ("exact_r_at_10", "exact search"))),
    "median_rank": ("Median rank", "of the query's own item", ()),
    "latency_p50_ms": (
        "Latency, median",
        "text searcher",
        (("encoding_p50_ms", "encoding"), ("threads_p50_ms", "{threads} threads")),
    ),
    "latency_p99_ms": ("Latency, p99", "text searcher", (("latency_p95_ms", "p95"),)),
    "image_latency_p50_ms": (
        "Latency, median",
        "image searcher",
        (("image_encoding_p50_ms", "encoding"), ("image_latency_p99_ms", "p99")),
    ),
    "bytes_per_image": ("Index size per item", "without metadata", (("index_bytes", "index file"),)),
    "searcher_bytes": ("Searcher file", "the larger one", ()),
    "memory_bytes": ("Memory", "text searcher open", (("load_seconds", "opens in"),)),
}
"""Figures that are shown as cards: title, subject, and related figures with their labels."""


@dataclass(frozen=True)
class Card:
    """A main figure.

    Attributes:
      failed: Whether a gate on the figure failed.
      interval: 95 percent interval; empty if there is none.
      track: For a share, its position, interval and limit on a line, each in percent.
      related: Labels and values of related figures.
    """

    title: str
    subject: str
    value: str
    failed: bool
    interval: str
    track: Track | None
    related: list[tuple[str, str]]


@dataclass(frozen=True)
class Track:
    """A share on a line from 0 to 100 percent, with its interval and the limit of its gate, all in percent."""

    value: float
    low: float
    high: float
    limit: float | None


def render(report: Report, pictures: Callable[[str], bytes | None]) -> str:
    """Returns the page, without the sections for which the report has no data.

    Args:
      pictures: Returns the encoded image of an item by its id; None for a text, or an image that cannot be read.
    """
    sections: dict[str, Any] = {
        "figures": report.figures,
        "examples": report.examples,
        "trade-off": charts.tradeoff(report.tradeoff),
        "latency": _latency_charts(report),
        "sizes": any(any(parts.values()) for parts in report.sizes.values()),
        "training": training_curves(report.training.get("history")),
        "corpus": report.corpus.inputs,
        "hostile": report.hostile,
        "live": report.live,
        "provenance": True,
    }
    return render_page(
        "serving_check.report",
        "check.html",
        report=report,
        sections=[name for name, content in sections.items() if content],
        gates=[gate_row(gate) for gate in report.gates],
        cards=[card for name in _CARDS if (card := _card(report, name))],
        conditions=conditions(report),
        figure_rows=_figure_rows(report),
        tradeoff=sections["trade-off"],
        latency_charts=sections["latency"],
        training_curves=sections["training"],
        parts=_parts(report.sizes),
        size_bars=_size_bars(report.sizes),
        hostile_rows=_hostile_rows(report.hostile),
        facts=_facts(report),
        settings=_settings(report),
        thumbnails=Thumbnails(pictures),
        part_colour=charts.colour,
        figures=figures,
        utc=utc,
    )


def utc(created: str) -> str:
    """Returns an ISO 8601 time in words and UTC; empty if it is not one."""
    try:
        time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return ""
    if time.tzinfo is not None:
        time = time.astimezone(timezone.utc)
    return f"{time.day} {time:%B %Y, %H:%M} UTC"


def _card(report: Report, name: str) -> Card | None:
    """Returns the card of a figure; None if it was not measured."""
    value = report.figures.get(name)
    if not isinstance(value, (int, float)) or not is_number(value):
        return None
    title, subject, related = _CARDS[name]
    gates = [gate for gate in report.gates if gate.name == name]
    ends, track = report.intervals.get(name), None
    if figures.is_share(name):
        limits = [gate.limit for gate in gates if gate.limit is not None]
        low, high = ends or (value, value)
        track = Track(_percent(value), _percent(low), _percent(high), _percent(limits[0]) if limits else None)
        subject = subject or ("image searcher" if report.figures.get("query_kind") == "image" else "text searcher")
    threads = formatted("threads", report.figures.get("threads"))
    return Card(
        title=title,
        subject=subject,
        value=formatted(name, value),
        failed=any(not gate.passed for gate in gates),
        interval=figures.interval(name, ends) if ends else "",
        track=track,
        related=[
            (label.format(threads=threads), formatted(other, report.figures[other]))
            for other, label in related
            if is_number(report.figures.get(other))
        ],
    )


def _percent(share: float) -> float:
    return 100 * min(1.0, max(0.0, share))


def _figure_rows(report: Report) -> list[tuple[str, str, str]]:
    """Returns each figure's name, and the keys of its values for the text and the image searcher; empty if absent."""
    paired = {figures.base(name) for name in report.figures if figures.base(name) != name}
    known = [name for name in figures.LABELS if name in report.figures or name in paired]
    others = [name for name in report.figures if figures.base(name) not in known]
    return [
        (name, name if name in report.figures else "", f"image_{name}" if name in paired else "")
        for name in [*known, *others]
    ]


def _latency_charts(report: Report) -> list[tuple[str, str, Markup]]:
    drawn = []
    for kind, histogram in report.latency.items():
        prefix = "image_" if kind == "image" else ""
        values = {p: report.figures.get(f"{prefix}latency_{p}_ms") for p in ("p50", "p95", "p99")}
        marks = {p: value for p, value in values.items() if isinstance(value, (int, float)) and is_number(value)}
        svg = charts.latency(kind, histogram, marks)
        if svg:
            percentiles = ", ".join(f"{p} {formatted('latency_p50_ms', value)}" for p, value in marks.items())
            title = f"{kind.capitalize()} searcher, {sum(histogram.counts):,} searches"
            drawn.append((title, f"{title}: {percentiles}", svg))
    return drawn


def _parts(sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns the names of the parts that any file has, in stacking order."""
    names = [*charts.PARTS, *(name for parts in sizes.values() for name in parts)]
    return [name for name in dict.fromkeys(names) if any(parts.get(name) for parts in sizes.values())]


def _size_bars(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, Markup]:
    """Returns the chart of each file."""
    largest = max((sum(parts.values()) for parts in sizes.values()), default=0)
    return {
        file: charts.bar({name: parts.get(name, 0) for name in _parts(sizes)}, largest) for file, parts in sizes.items()
    }


def _hostile_rows(queries: Sequence[HostileQuery]) -> dict[str, dict[str, list[HostileQuery]]]:
    """Returns the outcomes by query and searcher, queries that failed first."""
    rows: dict[str, dict[str, list[HostileQuery]]] = {}
    for query in sorted(queries, key=lambda query: query.outcome != "failed"):
        rows.setdefault(query.name, {}).setdefault(query.searcher, []).append(query)
    return rows


def _facts(report: Report) -> dict[str, Mapping[str, Any]]:
    """Returns the blocks of the section on provenance."""
    blocks: dict[str, Mapping[str, Any]] = {
        "This check": {"check": report.id, "created": report.created, "searcher": report.searcher},
        "Made from": {**report.provenance, **({"fingerprint": report.fingerprint} if report.fingerprint else {})},
        "Index": report.parameters,
        "Build of the searcher": {key: value for key, value in report.build.items() if key != "config"},
        "Files": {name: _file(file) for name, file in report.files.items()},
        "Settings of the check": report.config,
        "Versions": report.versions,
        "Seconds of the check": {step: f"{seconds:.1f}" for step, seconds in report.seconds.items()},
    }
    return {title: facts for title, facts in blocks.items() if facts}


def _settings(report: Report) -> dict[str, Mapping[str, Any]]:
    """Returns settings that are folded away."""
    settings = {
        "Settings of the index": report.build.get("config"),
        "Settings of the training": report.training.get("settings"),
    }
    return {title: found for title, found in settings.items() if isinstance(found, Mapping) and found}


def _file(file: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{value:,} bytes" if key == "bytes" and is_number(value) else str(value) for key, value in file.items()
    )
