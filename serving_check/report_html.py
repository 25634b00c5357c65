"""The report of a check as one HTML page that opens offline: no script, and nothing is loaded from elsewhere.

Captions, ids, reasons and settings are foreign text: they go through searchforge.page.text or attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from searchforge.charts import training_curves
from searchforge.page import (
    ROWS,
    Thumbnails,
    attribute,
    cards,
    charts,
    document,
    more,
    shown,
    table,
    text,
)
from serving_check import report_charts
from serving_check.gates import Gate
from serving_check.report import Example, FoundItem, LiveComparison, Report
from serving_check.report_figures import base, change, interval, label, size, write

_GATES = {
    "files": "The files are the ones that were built",
    "opens": "The Task Library opens both searchers",
    "model": "The models are the trained encoders",
    "metadata": "Metadata, normalisation and vocabulary fit",
    "index": "The index is whole and consistent",
    "fingerprint": "One encoder throughout",
    "items": "Every item is in the index, once",
    "item_metadata": "Every item has its own metadata",
    "codes": "Every code stands for its own item",
    "partitions": "Every centroid lies with its items",
    "encoders": "Queries are embedded as the corpus was",
    "embeddings": "Stored embeddings can be made again",
    "answers": "Every query is answered",
    "hostile_queries": "Hostile queries do no harm",
    "known_ids": "Every hit is an item of the corpus",
    "images_find_themselves": "Images find themselves",
    "texts_find_themselves": "Texts find themselves",
}
"""What a gate means, where it is not a figure's."""

_CARDS = (
    "recall_at_10",
    "r_at_10",
    "latency_p50_ms",
    "latency_p99_ms",
    "searcher_bytes",
    "bytes_per_image",
    "memory_bytes",
    "load_seconds",
)
_KINDS = {"text": "held-out captions", "image": "images of the corpus", "corpus_text": "texts of the corpus"}
_SHOWN_HITS = 10


def render(report: Report, pictures: Callable[[str], bytes | None]) -> str:
    """Returns the page.

    Args:
      pictures: returns the encoded image of an item by its id, or None where there is none to be had.
    """
    thumbnails = Thumbnails(pictures)
    sections = [
        _verdict(report),
        _gates(report),
        _figures(report),
        _live(report.live),
        _examples(report, thumbnails),
        _charts(report),
        _sizes(report),
        _training(report),
        _corpus(report),
        _hostile(report),
        _all_figures(report),
        _provenance(report),
    ]
    return document(f"Check of searcher {report.searcher}", sections, _STYLE + thumbnails.style())


def _verdict(report: Report) -> str:
    failed = [gate for gate in report.gates if not gate.passed]
    images, kind = report.figures.get("images"), report.corpus.modality
    counted = f"{images:,} {kind}" if isinstance(images, int) else f"a corpus of {kind}"
    if failed:
        words = f"{len(failed)} of {len(report.gates)} gates failed, so it must not ship."
    else:
        words = f"All {len(report.gates)} gates are passed: it may ship."
    return (
        f'<header class="verdict {"bad" if failed else "good"}"><p class=mark>{"Failed" if failed else "Passed"}</p>'
        f"<h1>Searcher <code>{text(report.searcher, fold=False)}</code></h1>"
        f"<p>{words}</p><p class=note>{counted}, checked on {text(report.created, fold=False)} "
        "with the TFLite Task Library, as a phone would run it.</p></header>"
    )


def _gates(report: Report) -> str:
    ordered = sorted(report.gates, key=lambda gate: gate.passed)
    rows = "".join(_gate(gate) for gate in ordered)
    return f"<section><h2>Gates</h2><ul class=gates>{rows}</ul></section>"


def _gate(gate: Gate) -> str:
    title = _GATES.get(gate.name) or label(gate.name)
    state, sign = ("good", "✓") if gate.passed else ("bad", "✗")
    spoken = "passed" if gate.passed else "failed"
    return (
        f'<li class={state}><span class=sign role="img" aria-label="{spoken}">{sign}</span><div><b>{title}</b> '
        f"<code>{text(gate.name, fold=False)}</code><div class=detail>{text(gate.detail)}</div></div></li>"
    )


def _figures(report: Report) -> str:
    figures = report.figures
    found = []
    for name in _CARDS:
        if isinstance(figures.get(name), (int, float)):
            ends = report.intervals.get(name)
            about = f"<small>{interval(name, ends)}</small>" if ends else ""
            found.append((label(name), write(name, figures[name]), about))
    if not found:
        return ""
    kind = _KINDS.get(str(figures.get("query_kind")), "queries")
    seen = figures.get("queries_seen_by_tuner")
    asked = write("queries", figures.get("queries"))
    told = f", {seen} of which had tuned the index" if seen else ""
    return (
        f"<section><h2>Figures</h2><p class=note>Recall is measured on {asked} {kind}{told}; ranges are 95 percent "
        "intervals. Recall: share of the exact ten best that the searcher returns. R@10: share of queries that find "
        "their own item among ten hits. Latency: one query, one thread, encoding included.</p>"
        f"{cards(found)}</section>"
    )


def _live(live: LiveComparison | None) -> str:
    if live is None:
        return ""
    rows = []
    for figure in live.figures:
        told, better = ("–", None)
        if figure.candidate is not None and figure.live is not None:
            told, better = change(figure.name, figure.candidate, figure.live)
        state = "" if better is None else f" class={'better' if better else 'worse'}"
        rows.append(
            [
                label(figure.name),
                write(figure.name, figure.candidate),
                write(figure.name, figure.live),
                f"<span{state}>{told}</span>",
            ]
        )
    overlap = ""
    if live.overlap_at_10 is not None:
        overlap = f" On average {10 * live.overlap_at_10:.1f} of the live release's first ten hits are found again."
    note = f"<p class=note>{text(live.note)}</p>" if live.note else ""
    return (
        f"<section><h2>Beside the live release</h2><p>Release <code>{text(live.release, fold=False)}</code> of "
        f"{text(live.created, fold=False)}. Both were asked {live.queries:,} queries in turns, {live.shared_queries:,} "
        f"of them about items that both hold.{overlap}</p>{note}"
        f"{table(['', 'Candidate', 'Live', 'Change'], rows, 'figures')}</section>"
    )


def _examples(report: Report, thumbnails: Thumbnails) -> str:
    if not report.examples:
        return ""
    shown_ones = "".join(_example(example, thumbnails) for example in report.examples)
    return (
        "<section><h2>Examples</h2><p class=note>Queries that lost most come first, then some by chance. Framed: the "
        "query's own item. <span class=off>Dashed</span>: a hit that exact search does not have among its ten. What "
        f"the searcher missed is shown below the hits.</p>{shown_ones}</section>"
    )


def _example(example: Example, thumbnails: Thumbnails) -> str:
    exact = {found.id for found in example.exact}
    hits = {found.id for found in example.hits}
    missed = [found for found in example.exact if found.id not in hits]
    if example.kind == "image":
        query = (
            f"<div class=query>{thumbnails.element(example.query, example.query)}<div>{text(example.query)}</div></div>"
        )
    else:
        query = f"<div class=query><div class=words>{text(example.query)}</div></div>"
    found = "".join(
        _item(hit, thumbnails, example.own, hit.id not in exact, f"{place}. ")
        for place, hit in enumerate(example.hits[:_SHOWN_HITS], start=1)
    )
    rest = ""
    if missed:
        tiles = "".join(_item(item, thumbnails, example.own, False, "") for item in missed[:_SHOWN_HITS])
        rest = f"<p class=note>Missed of the exact ten</p><div class=row>{tiles}</div>"
    return (
        f"<article>{query}<p class=note>{100 * example.recall_at_10:.0f} of 100 exact answers returned</p>"
        f"<div class=row>{found}</div>{rest}</article>"
    )


def _item(item: FoundItem, thumbnails: Thumbnails, own: str, off: bool, place: str) -> str:
    kinds = " ".join(kind for kind, wanted in (("own", item.id == own), ("off", off)) if wanted)
    picture = (
        thumbnails.element(item.id, item.id)
        if thumbnails.has(item.id)
        else f"<div class=id>{text(item.id, fold=False)}</div>"
    )
    return (
        f'<figure class="{kinds}">{picture}<figcaption title="{attribute(item.id)}">{place}{_score(item)}'
        "</figcaption></figure>"
    )


def _score(item: FoundItem) -> str:
    return "no number" if item.score is None else f"{item.score:.3f}"


def _charts(report: Report) -> str:
    drawn = []
    legend = ""
    if curve := report_charts.tradeoff(report.tradeoff):
        drawn.append(("Recall against latency, as the tuner saw it", "recall@10 by milliseconds a search", curve.svg))
        entries = "".join(
            f'<li><span class=swatch style="background:{colour}"></span>{code:g} B a code, {per_image:.0f} B an image'
            "</li>"
            for colour, code, per_image in curve.fronts
        )
        chosen = "<li><span class=ring></span>chosen</li>" if curve.chosen else ""
        legend = f"<ul class=legend>{entries}{chosen}</ul>"
    for kind, histogram in report.latency.items():
        prefix = "" if kind == "text" else "image_"
        marks = {
            f"p{p}": float(value)
            for p in (50, 99)
            if isinstance(value := report.figures.get(f"{prefix}latency_p{p}_ms"), (int, float))
        }
        if chart := report_charts.latency(kind, histogram, marks):
            drawn.append((f"Latency of the {kind} searcher", f"milliseconds of {sum(histogram.counts)} queries", chart))
    return f"<section><h2>Speed and recall</h2>{charts(drawn)}{legend}</section>" if drawn else ""


def _sizes(report: Report) -> str:
    if not report.sizes:
        return ""
    scale = max(sum(parts.values()) for parts in report.sizes.values())
    bars = "".join(
        f'<div class=file><p><b>{text(name, fold=False)}</b> {size(sum(parts.values()))}</p><div role="img" '
        f'aria-label="{attribute(name)}: {attribute(_spoken(parts))}">{report_charts.bar(parts, scale)}</div></div>'
        for name, parts in report.sizes.items()
    )
    known = [part for part in report_charts.PARTS if any(parts.get(part) for parts in report.sizes.values())]
    legend = "".join(
        f'<li><span class=swatch style="background:{report_charts.colour(part)}"></span>{part.replace("_", " ")}: '
        f"{' / '.join(size(parts.get(part, 0)) for parts in report.sizes.values())}</li>"
        for part in known
    )
    return f"<section><h2>Size</h2>{bars}<ul class=legend>{legend}</ul></section>"


def _spoken(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,} bytes" for name, count in parts.items())


def _training(report: Report) -> str:
    drawn = training_curves(report.training.get("history") or ())
    if not drawn:
        return ""
    return (
        "<section><h2>Training of the encoder</h2>"
        f"{charts((title, f'{title} by epoch', svg) for title, svg in drawn.items())}</section>"
    )


def _corpus(report: Report) -> str:
    corpus = report.corpus
    counts = [(name, f"{getattr(corpus, name):,}", "") for name in ("inputs", "embedded", "reused", "rejected")]
    rejects = sorted(corpus.rejected_by_reason.items(), key=lambda entry: -entry[1])
    reasons = (
        table(["Reason", "Rejected"], [[text(r), f"{n:,}"] for r, n in rejects[:ROWS]], "figures") if rejects else ""
    )
    return (
        f"<section><h2>Corpus</h2><p>{text(corpus.source)}</p>"
        f"{cards((name.capitalize(), value, about) for name, value, about in counts)}{reasons}"
        f"{more(len(rejects), 'reasons, see report.json')}</section>"
    )


def _hostile(report: Report) -> str:
    if not report.hostile:
        return ""
    order = {"failed": 0, "refused": 1, "answered": 2}
    rows = [
        [
            text(query.name, fold=False),
            text(query.searcher, fold=False),
            f"<span class={'worse' if query.outcome == 'failed' else 'fine'}>{query.outcome}</span>",
            text(query.detail),
        ]
        for query in sorted(report.hostile, key=lambda query: order[query.outcome])
    ]
    failed = sum(query.outcome == "failed" for query in report.hostile)
    told = f"{failed} failed" if failed else "none failed"
    return (
        f"<section><h2>Hostile queries</h2><details{' open' if failed else ''}>"
        f"<summary>{len(rows)} asked, {told}</summary>"
        f"{table(['Query', 'Searcher', 'Outcome', 'Detail'], rows)}</details></section>"
    )


def _all_figures(report: Report) -> str:
    rows = []
    for name, value in sorted(report.figures.items(), key=lambda entry: (base(entry[0]) != entry[0], entry[0])):
        ends = report.intervals.get(name)
        rows.append(
            [
                label(name),
                f"<code>{text(name, fold=False)}</code>",
                write(name, value),
                interval(name, ends) if ends else "",
            ]
        )
    return (
        "<section><h2>All figures</h2><details><summary>Everything that was measured</summary>"
        f"{table(['', '', 'Value', '95 percent interval'], rows)}</details></section>"
    )


def _provenance(report: Report) -> str:
    facts = {
        "check": report.id,
        **report.provenance,
        "fingerprint": report.fingerprint,
        "searcher built": report.build.get("created", ""),
        **{f"SHA-256 of {name}": file.get("sha256", "") for name, file in report.files.items()},
        **{f"{name} (version)": version for name, version in report.versions.items()},
        **{f"seconds of the check: {step}": f"{seconds:.1f}" for step, seconds in report.seconds.items()},
    }
    folded = {
        "Index": report.parameters,
        "Settings of the index": report.build.get("config"),
        "Seconds of the build": report.build.get("seconds"),
        "Settings of the check": report.config,
        "Settings of the training": report.training.get("settings"),
    }
    details = "".join(
        f"<details><summary>{title}</summary>{table(['', ''], _rows(values))}</details>"
        for title, values in folded.items()
        if isinstance(values, Mapping) and values
    )
    return f"<section><h2>Provenance</h2>{table(['', ''], _rows(facts))}{details}</section>"


def _rows(values: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    return [[text(key, fold=False), shown(value)] for key, value in values.items()]


_STYLE = """
.verdict { border: 1px solid var(--line); border-left: .6rem solid var(--good); border-radius: .8rem;
  background: var(--card); padding: 1.1rem 1.3rem; }
.verdict.bad { border-left-color: var(--bad); }
.verdict p { margin: .2rem 0; }
.verdict .mark { font-size: 2.2rem; font-weight: 700; line-height: 1.1; color: var(--good); }
.verdict.bad .mark { color: var(--bad); }
.verdict h1 { margin: .3rem 0; }
.gates { list-style: none; margin: .5rem 0; padding: 0; display: grid; gap: .4rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.gates li { display: flex; gap: .7rem; padding: .5rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
.gates li.bad { grid-column: 1 / -1; }
.gates li > div { min-width: 0; flex: 1; }
.gates b { font-weight: 600; }
.gates code { color: var(--faint); }
.gates .detail { color: var(--faint); font-size: .9rem; overflow-wrap: anywhere; }
.sign { font-weight: 700; color: var(--good); }
.bad .sign, .worse { color: var(--bad); }
.gates li.bad { background: color-mix(in srgb, var(--bad) 8%, transparent); }
.gates li.bad .detail { color: var(--ink); }
.better { color: var(--good); }
.query { display: flex; gap: .8rem; align-items: center; }
.query .picture { width: 96px; flex: none; }
.words { font-size: 1.1rem; font-weight: 600; min-width: 0; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(78px, 1fr)); gap: .5rem; }
.row figure { margin: 0; padding: 3px; border: 2px solid transparent; border-radius: .5rem; min-width: 0; }
.row .own { border-color: var(--good); }
.row .off { border-style: dashed; border-color: var(--warn); }
.row .own.off { border-color: var(--good); }
.row figcaption { line-height: 1.3; font-size: .78rem; font-variant-numeric: tabular-nums; }
span.off { border-bottom: 2px dashed var(--warn); }
.id { font-size: .78rem; overflow-wrap: anywhere; aspect-ratio: 1; overflow: hidden;
  background: var(--paper); padding: .3rem; border-radius: .35rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: .6rem 0;
  font-size: .88rem; color: var(--faint); }
.swatch, .ring { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .4rem;
  vertical-align: -.05rem; }
.ring { border: 2px solid var(--ink); border-radius: 50%; }
.file p { margin: .6rem 0 .2rem; }
.file svg { width: 100%; height: 1.5rem; border-radius: .35rem; }
"""
