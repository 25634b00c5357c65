"""The verdict of a check's page, and the gates that led to it: the failed ones on top, with what they miss."""

from __future__ import annotations

from datetime import datetime, timezone

from searchforge.reporting.page import attribute, text
from serving_check.gate import Gate, at_least, at_most
from serving_check.report import figures
from serving_check.schema import Report

_NAMES = {
    "files": "Searcher files",
    "opens": "Opening in the Task Library",
    "model": "Model of the searcher",
    "metadata": "Metadata of the searcher",
    "index": "Index of the searcher",
    "fingerprint": "Fingerprint of the encoder",
    "items": "Items of the index",
    "item_metadata": "Metadata of the items",
    "codes": "Codes of the items",
    "partitions": "Partitions of the index",
    "encoders": "Encoders of query and corpus",
    "embeddings": "Embeddings of the corpus",
    "answers": "Answers to every query",
    "hostile_queries": "Hostile queries",
    "known_ids": "Ids of the hits",
    "images_find_themselves": "Images that find themselves",
    "texts_find_themselves": "Texts that find themselves",
}
"""What gates are called that are not named after a figure."""

_SELF_HITS = "_find_themselves"

_PASSED = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 12.5l4.6 4.6L19.2 7.4"/></svg>'
_FAILED = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6.5 6.5l11 11M17.5 6.5l-11 11"/></svg>'


def name(gate: str) -> str:
    """Returns what a gate is called, as HTML."""
    return _NAMES.get(gate) or figures.label(gate)


def verdict(report: Report) -> str:
    """Returns the banner: passed or failed, of what, and when."""
    failed = [gate for gate in report.gates if not gate.passed]
    count = len(report.gates)
    if report.passed:
        said = f"This searcher may ship: {'its only gate' if count == 1 else f'all {count} gates'} passed."
    elif failed:
        gates = ", ".join(name(gate.name) for gate in failed[:3])
        others = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        said = f"This searcher must not ship. {len(failed)} of {count} gates failed: {gates}{others}."
    else:
        said = "This searcher must not ship."
    facts = [
        f"searcher <code>{text(report.searcher, fold=False)}</code>",
        *_corpus(report),
        f"checked {moment(report.created)}",
    ]
    return (
        f'<header class="verdict {"passed" if report.passed else "failed"}">'
        f"<h1>{_icon(report.passed)}{'Passed' if report.passed else 'Failed'}</h1>"
        f"<div><p class=lead>{said}</p><p>{' · '.join(facts)}</p></div></header>"
    )


def gates(report: Report) -> str:
    """Returns all gates: the failed ones as cards, then the others in their order."""
    failed = [gate for gate in report.gates if not gate.passed]
    passed = [gate for gate in report.gates if gate.passed]
    cards = "".join(map(_failed, failed))
    rows = "".join(map(_passed, passed))
    return (
        (f"<section id=failed><h2>Failed gates</h2><ul class=misses>{cards}</ul></section>" if failed else "")
        + (f"<section id=gates><h2>{_count(passed)}</h2><ul class=gates>{rows}</ul></section>" if passed else "")
    )  # fmt: skip


def moment(created: str) -> str:
    """Returns an ISO 8601 time in words and UTC, as HTML; anything else as it is."""
    try:
        time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return text(created, fold=False)
    if time.tzinfo is not None:
        time = time.astimezone(timezone.utc)
    return f'<time datetime="{attribute(created)}">{time.day} {time:%B %Y, %H:%M} UTC</time>'


def _corpus(report: Report) -> list[str]:
    count = report.figures.get("images")
    return [f"{figures.write('images', count)} {report.corpus.modality}"] if isinstance(count, int) else []


def _count(passed: list[Gate]) -> str:
    return f"{len(passed)} gate{'' if len(passed) == 1 else 's'} passed"


def _icon(passed: bool) -> str:
    return f"<span class=icon>{_PASSED if passed else _FAILED}</span>"


def _failed(gate: Gate) -> str:
    measured = "not measured" if gate.measured is None else _measured(gate)
    limit = f"<span>{_limit(gate)}</span>" if gate.limit is not None else ""
    miss = f"<div class=miss><b>{measured}</b>{limit}</div>" if gate.measured is not None or limit else ""
    return (
        f"<li>{_icon(False)}<div><h3>{name(gate.name)} <code>{text(gate.name, fold=False)}</code></h3>"
        f"{miss}<div class=detail>{text(gate.detail)}</div></div></li>"
    )


def _passed(gate: Gate) -> str:
    figure = ""
    if gate.measured is not None and not _counts_faults(gate):
        limit = f" <span>{_limit(gate)}</span>" if gate.limit is not None else ""
        figure = f"<div class=figure><b>{_measured(gate)}</b>{limit}</div>"
    detail = "" if figure and _repeats(gate) else f"<div class=detail>{text(gate.detail)}</div>"
    called = f"<div class=name>{name(gate.name)} <code>{text(gate.name, fold=False)}</code></div>"
    return f"<li>{_icon(True)}{called}{figure}{detail}</li>"


def _repeats(gate: Gate) -> bool:
    """Whether the detail says no more than the measured value and the limit."""
    limit = gate.limit or 0.0
    return gate.detail in (check(gate.name, gate.measured, limit).detail for check in (at_least, at_most))


def _counts_faults(gate: Gate) -> bool:
    return gate.limit == 0 and gate.measured is not None and gate.measured == int(gate.measured)


def _measured(gate: Gate) -> str:
    if _counts_faults(gate):
        count = int(gate.measured or 0)
        return f"{count:,} fault{'' if count == 1 else 's'}"
    return _write(gate, gate.measured)


def _limit(gate: Gate) -> str:
    """The demand: a gate says no more than on which side of its limit it passes."""
    if _counts_faults(gate):
        return "none allowed"
    limit = _write(gate, gate.limit)
    better = figures.higher_is_better(gate.name.removeprefix("live_"))
    if gate.measured is not None and gate.limit is not None and gate.measured != gate.limit:
        better = gate.passed == (gate.measured > gate.limit)
    elif gate.name.endswith(_SELF_HITS):
        better = True
    return f"limit {limit}" if better is None else f"at {'least' if better else 'most'} {limit}"


def _write(gate: Gate, value: float | None) -> str:
    """A value of the gate; with all its digits where it would look like the other one."""
    written, limit = (_rounded(gate, one) for one in (gate.measured, gate.limit))
    if written == limit and gate.measured != gate.limit and value is not None:
        return f"{value:.10g}"
    return _rounded(gate, value)


def _rounded(gate: Gate, value: float | None) -> str:
    if value is not None and gate.name.endswith(_SELF_HITS):
        return figures.percent(value)
    return figures.write(gate.name.removeprefix("live_"), value)
