"""The report of a check as one HTML page for people; see searchforge.reporting.page for what all pages promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from searchforge.reporting.charts import is_number, training_curves
from searchforge.reporting.page import ROWS, Thumbnails, cards, charts, document, more, shown, table, text
from serving_check.report import charts as check_charts
from serving_check.report import figures
from serving_check.report.examples import examples
from serving_check.report.figures import interval, label, percent, size, write
from serving_check.report.gates import gates, moment, verdict
from serving_check.report.style import STYLE
from serving_check.schema import Compared, HostileQuery, LiveComparison, Report

_ASKED = {
    "text": "held-out captions",
    "image": "images of the corpus",
    "corpus_text": "texts of the corpus, which are to find themselves",
}


def render(report: Report, pictures: Callable[[str], bytes | None]) -> str:
    """Returns the page; parts of which the report says nothing are left out.

    Args:
      pictures: returns the encoded image of an item by its id, or None: of a text, or one that cannot be read.
    """
    thumbnails = Thumbnails(pictures)
    parts = {
        "Figures": _figures(report),
        "Examples": examples(report.examples, thumbnails),
        "Trade-off": _tradeoff(report.tradeoff),
        "Latency": _latency(report),
        "Sizes": _sizes(report.sizes),
        "Training": _training(report.training),
        "Corpus": _corpus(report),
        "Hostile queries": _hostile(report.hostile),
        "Live release": _live(report.live),
        "Provenance": _provenance(report),
    }
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, part in parts.items() if part)
    sections = [verdict(report), f"<nav>{links}</nav>", gates(report), *parts.values()]
    title = f"Check of searcher {report.searcher}: {'passed' if report.passed else 'failed'}"
    return document(title, sections, STYLE + thumbnails.style())


def _section(title: str, heading: str, content: str) -> str:
    return f"<section id={_anchor(title)}><h2>{heading}</h2>{content}</section>"


def _anchor(title: str) -> str:
    return title.split()[0].lower()


def _figures(report: Report) -> str:
    found = report.figures
    kind = _ASKED.get(str(found.get("query_kind")), "queries")
    asked = f"Measured with {write('queries', found['queries'])} {kind}" if is_number(found.get("queries")) else ""
    if asked and found.get("queries_seen_by_tuner"):
        asked += f", {write('queries', found['queries_seen_by_tuner'])} of which the tuner had seen"
    if is_number(found.get("gallery")):
        asked += f", among {write('gallery', found['gallery'])} {report.corpus.modality}"
    drawn = [card for name in _CARDS for card in _card(report, name)]
    if not found:
        return ""
    return _section(
        "Figures",
        "Main figures",
        (f"<p>{asked}. Through the Task Library, one query at a time.</p>" if asked else "")
        + cards(drawn)
        + '<p class="note">Ranges are 95 percent intervals. Recall@k is the share of the exact first k that the index '
        "returns; R@k is the share of queries whose own item is among the first k hits.</p>"
        f"<details><summary>Every figure</summary>{_every_figure(report)}</details>",
    )


_CARDS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "recall_at_10": ("Recall@10", "", (("recall_at_1", "@1"), ("recall_at_100", "@100"))),
    "image_recall_at_10": (
        "Recall@10",
        "image searcher",
        (("image_recall_at_1", "@1"), ("image_recall_at_100", "@100")),
    ),
    "r_at_10": ("R@10", "", (("r_at_1", "@1"), ("r_at_5", "@5"), ("exact_r_at_10", "exact search"))),
    "median_rank": ("Median rank", "of the own item", ()),
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
    "bytes_per_image": ("Index for each item", "without metadata", (("index_bytes", "index file"),)),
    "searcher_bytes": ("Searcher file", "the larger one", ()),
    "memory_bytes": ("Memory", "text searcher open", (("load_seconds", "opens in"),)),
}
"""The figures that are shown as cards: their title and subject, and figures that are shown beside them."""


def _card(report: Report, name: str) -> list[tuple[str, str, str]]:
    """The card of a figure; none where it was not measured."""
    value = report.figures.get(name)
    if not isinstance(value, (int, float)) or not is_number(value):
        return []
    title, subject, others = _CARDS[name]
    asked = "image searcher" if report.figures.get("query_kind") == "image" else "text searcher"
    about = [f"<span>{interval(name, report.intervals[name])}</span>"] if name in report.intervals else []
    if figures.is_share(name):
        limits = [gate.limit for gate in report.gates if gate.name == name and gate.limit is not None]
        about.append(_track(value, report.intervals.get(name), limits[0] if limits else None))
        subject = subject or asked
    threads = write("threads", report.figures.get("threads"))
    about += [
        f"<span class=beside>{called.format(threads=threads)} <i>{write(other, report.figures[other])}</i></span>"
        for other, called in others
        if is_number(report.figures.get(other))
    ]
    failed = any(gate.name == name and not gate.passed for gate in report.gates)
    written = f"<strong>{write(name, value)}</strong>" if failed else write(name, value)
    return [(f"{title} <small>{subject}</small>", written, "".join(about))]


def _track(value: float, ends: tuple[float, float] | None, limit: float | None) -> str:
    """A share on a line from 0 to 100 percent, with its interval and the limit of its gate."""

    def at(share: float) -> str:
        return f"{100 * min(1.0, max(0.0, share)):.1f}%"

    low, high = ends or (value, value)
    range_of = f'<i style="left:{at(low)};right:{at(1 - high)}"></i>'
    mark = f'<s style="left:{at(limit)}"></s>' if limit is not None else ""
    return f'<span class=track><u style="width:{at(value)}"></u>{range_of}{mark}</span>'


def _every_figure(report: Report) -> str:
    """All figures by name, those of both searchers side by side."""
    paired = {figures.base(name) for name in report.figures if figures.base(name) != name}
    known = [name for name in figures.LABELS if name in report.figures or name in paired]
    others = [name for name in report.figures if figures.base(name) not in known]
    rows = []
    for name in [*known, *others]:
        rows.append(
            [
                f"{label(name)} <code>{text(name, fold=False)}</code>",
                _value(report, name),
                _value(report, f"image_{name}") if name in paired else "",
            ]
        )
    return table(["Figure", "Text searcher, or both", "Image searcher"], rows[:ROWS], "figures")


def _value(report: Report, name: str) -> str:
    if name not in report.figures:
        return ""
    ends = report.intervals.get(name)
    return write(name, report.figures[name]) + (f"<br><small>{interval(name, ends)}</small>" if ends else "")


def _tradeoff(content: Mapping[str, Any] | None) -> str:
    drawn = check_charts.tradeoff(content)
    if drawn is None:
        return ""
    key = "".join(
        f'<li><i style="background:{colour}"></i>{size(code)} a code, {size(of_image)} an image</li>'
        for colour, code, of_image in drawn.fronts[:ROWS]
    )
    about = ""
    if drawn.chosen:
        point = drawn.chosen
        key += "<li><i class=ring></i>chosen by the tuner</li>"
        about = (
            f" It chose codes of {size(point['code_bytes'])}: recall@10 {percent(point['recall_at_10'])} in "
            f"{write('search_ms', point['search_ms'])}."
        )
    chart = charts([("Recall by latency", "Recall@10 by expected milliseconds a search, by size of a code", drawn.svg)])
    return _section(
        "Trade-off",
        "What the tuner saw",
        "<p>The best recall for each time of a search, the encoding of the query apart, one line for each size of a "
        f'code.{about}</p><div class="panel front">{chart}<ul class=legend>{key}</ul></div>',
    )


def _latency(report: Report) -> str:
    drawn = []
    for kind, histogram in report.latency.items():
        prefix = "image_" if kind == "image" else ""
        values = {p: report.figures.get(f"{prefix}latency_{p}_ms") for p in ("p50", "p95", "p99")}
        marks = {p: value for p, value in values.items() if isinstance(value, (int, float)) and is_number(value)}
        svg = check_charts.latency(kind, histogram, marks)
        if svg:
            said = ", ".join(f"{p} {write('latency_p50_ms', value)}" for p, value in marks.items())
            title = f"{kind.capitalize()} searcher, {sum(histogram.counts):,} searches"
            drawn.append((title, f"{title}: {said}", svg))
    if not drawn:
        return ""
    about = "<p>Of one query on one thread, its encoding included; the last bar also holds what took longer.</p>"
    return _section("Latency", "Latency", f"{about}<div class=panel>{charts(drawn)}</div>")


def _sizes(sizes: Mapping[str, Mapping[str, int]]) -> str:
    if not any(any(parts.values()) for parts in sizes.values()):
        return ""
    names = [*check_charts.PARTS, *{name: None for parts in sizes.values() for name in parts}]
    names = [name for name in dict.fromkeys(names) if any(parts.get(name) for parts in sizes.values())]
    largest = max(sum(parts.values()) for parts in sizes.values())
    bars = "".join(
        f"<div class=file><div><b>{text(file, fold=False)}</b> <span>{size(sum(parts.values()))}</span></div>"
        f"{check_charts.bar({name: parts.get(name, 0) for name in names}, largest)}</div>"
        for file, parts in sizes.items()
    )
    rows = [
        [
            f'<i class=swatch style="background:{check_charts.colour(name)}"></i>{_words(name)}',
            *(size(parts[name]) if name in parts else "–" for parts in sizes.values()),
        ]
        for name in names
    ]
    heads = ["Part", *(text(file.removesuffix(".tflite").replace("_", " "), fold=False) for file in sizes)]
    return _section(
        "Sizes", "What the files are made of", f"<div class=panel>{bars}{table(heads, rows, 'figures')}</div>"
    )


def _training(training: Mapping[str, Any]) -> str:
    drawn = [(title, f"{title} by epoch", svg) for title, svg in training_curves(training.get("history")).items()]
    if not drawn:
        return ""
    return _section("Training", "Training of the encoder", f"<div class=panel>{charts(drawn)}</div>")


def _corpus(report: Report) -> str:
    corpus = report.corpus
    if not corpus.inputs:
        return ""
    counts = cards(
        (name, f"{count:,}", "")
        for name, count in (
            ("Inputs", corpus.inputs),
            ("Embedded", corpus.embedded),
            ("Reused", corpus.reused),
            ("Rejected", corpus.rejected),
        )
    )
    reasons = sorted(corpus.rejected_by_reason.items(), key=lambda reason: -reason[1])
    rows = [[text(reason), f"{count:,}", percent(count / max(1, corpus.inputs))] for reason, count in reasons]
    rejected = (
        f"<div class=panel>{table(['Rejected because', 'Inputs', 'Share'], rows[:ROWS], 'figures')}"
        f"{more(len(rows), 'reasons')}</div>"
        if rows
        else ""
    )
    source = f"<div class=source>{corpus.modality.capitalize()} of {text(corpus.source)}</div>" if corpus.source else ""
    return _section("Corpus", "Corpus", source + counts + rejected)


def _hostile(queries: Sequence[HostileQuery]) -> str:
    """A row for each query, those that did harm first, and a column for each searcher."""
    if not queries:
        return ""
    searchers = list(dict.fromkeys(query.searcher for query in queries))
    asked: dict[str, dict[str, list[HostileQuery]]] = {}
    for query in sorted(queries, key=lambda query: query.outcome != "failed"):
        asked.setdefault(query.name, {}).setdefault(query.searcher, []).append(query)
    rows = [
        [text(name), *("".join(map(_outcome, taken.get(searcher, ()))) for searcher in searchers)]
        for name, taken in asked.items()
    ]
    failed = sum(query.outcome == "failed" for query in queries)
    said = f"{failed:,} of {len(queries):,} did harm." if failed else f"None of {len(queries):,} did harm."
    listed = table(["What was asked", *(text(searcher, fold=False) for searcher in searchers)], rows[:ROWS], "hostile")
    return _section(
        "Hostile queries",
        "Hostile queries",
        f"<p>Queries that nobody should ask: an answer is well, and so is a refusal with a reason. {said}</p>"
        f"<div class=panel>{listed}{more(len(rows), 'queries')}</div>",
    )


def _outcome(query: HostileQuery) -> str:
    pill = f'<span class="pill {query.outcome}">{query.outcome}</span>'
    searcher = f"<small>{text(query.searcher, fold=False)}</small>"  # for phones, where columns become lines
    return f"{searcher}<div>{pill}<div class=detail>{text(query.detail)}</div></div>"


_SIDES = ("Figure", "Live", "Candidate", "Change")


def _live(live: LiveComparison | None) -> str:
    if live is None:
        return ""
    about = (
        f"<div>Release <code>{text(live.release, fold=False)}</code> of {moment(live.created)}, asked the same "
        f"{live.queries:,} queries in turns"
        + (f"; R@k on the {live.shared_queries:,} whose own item both hold" if live.shared_queries else "")
        + ".</div>"
    )
    if live.overlap_at_10 is not None:
        about += f"<div>The first ten hits overlap by <b>{percent(live.overlap_at_10)}</b>.</div>"
    rows = [_compared(one) for one in live.figures]
    listed = f"<div class=panel>{table(_SIDES, rows, 'figures compared')}</div>" if rows else ""
    note = f"<div class=note>{text(live.note)}</div>" if live.note else ""
    return _section("Live release", "Beside the live release", about + listed + note)


def _compared(one: Compared) -> list[str]:
    said = "–"
    if one.candidate is not None and one.live is not None:
        written, better = figures.change(one.name, one.candidate, one.live)
        verdict = {True: " <em>better</em>", False: " <em>worse</em>", None: ""}[better]
        said = f'<span class="{ {True: "better", False: "worse", None: "same"}[better] }">{written}{verdict}</span>'
    return [label(one.name), write(one.name, one.live), write(one.name, one.candidate), said]


def _provenance(report: Report) -> str:
    build = {key: value for key, value in report.build.items() if key != "config"}
    blocks = (
        ("This check", {"check": report.id, "created": report.created, "searcher": report.searcher}),
        ("Made from", {**report.provenance, **({"fingerprint": report.fingerprint} if report.fingerprint else {})}),
        ("Index", report.parameters),
        ("Build of the searcher", build),
        ("Files", {name: _file(file) for name, file in report.files.items()}),
        ("Settings of the check", report.config),
        ("Versions", report.versions),
        ("Seconds of the check", {step: f"{seconds:.1f}" for step, seconds in report.seconds.items()}),
    )
    folded = (
        ("Settings of the index", report.build.get("config")),
        ("Settings of the training", report.training.get("settings")),
    )
    return _section(
        "Provenance",
        "Provenance",
        f"<div class=facts>{''.join(_facts(title, facts) for title, facts in blocks if facts)}</div>"
        + "".join(
            f"<details><summary>{title}</summary>{_settings(settings)}</details>"
            for title, settings in folded
            if isinstance(settings, Mapping) and settings
        ),
    )


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    pairs = "".join(
        f"<div><dt>{text(key, fold=False)}</dt><dd>{shown(value)}</dd></div>" for key, value in facts.items()
    )
    return f"<article><h3>{title}</h3><dl>{pairs}</dl></article>"


def _settings(settings: Mapping[str, Any]) -> str:
    return table(["Setting", "Value"], [[f"<code>{text(key)}</code>", shown(value)] for key, value in settings.items()])


def _file(file: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{value:,} bytes" if key == "bytes" and is_number(value) else str(value) for key, value in file.items()
    )


def _words(name: str) -> str:
    """A key as words, as HTML."""
    return text(name.replace("_", " "), fold=False)
