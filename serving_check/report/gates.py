"""Prepares the gates of a check for its page: titles, and measured values and limits with their units."""

from __future__ import annotations

from dataclasses import dataclass

from serving_check.gate import Gate, at_least, at_most
from serving_check.report import figures

_TITLES = {
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
"""Titles of gates that are not named after a figure."""

_SELF_HITS = "_find_themselves"


@dataclass(frozen=True)
class GateRow:
    """A gate as the page shows it.

    Attributes:
      name: Key of the gate in report.json.
      title: Human-readable name.
      measured: Measured value with its unit; empty if there is nothing to show.
      limit: Requirement, such as "at least 90 %"; empty if there is nothing to show.
      detail: Sentence about the gate; empty if it would repeat the value and the limit.
    """

    name: str
    title: str
    passed: bool
    measured: str
    limit: str
    detail: str


def gate_row(gate: Gate) -> GateRow:
    """Returns how the page shows a gate: a failed one in full, a passed one without repetition."""
    title = _TITLES.get(gate.name) or figures.label(gate.name)
    if gate.measured is None:
        limit = "" if gate.passed or gate.limit is None else _requirement(gate)
        return GateRow(gate.name, title, gate.passed, "not measured" if limit else "", limit, gate.detail)
    if gate.passed and _counts_faults(gate):
        return GateRow(gate.name, title, True, "", "", gate.detail)
    detail = "" if gate.passed and _repeats(gate) else gate.detail
    limit = "" if gate.limit is None else _requirement(gate)
    return GateRow(gate.name, title, gate.passed, _measured(gate), limit, detail)


def _repeats(gate: Gate) -> bool:
    """Returns whether the detail says no more than the measured value and the limit."""
    limit = gate.limit or 0.0
    return gate.detail in (check(gate.name, gate.measured, limit).detail for check in (at_least, at_most))


def _counts_faults(gate: Gate) -> bool:
    return gate.limit == 0 and gate.measured is not None and gate.measured == int(gate.measured)


def _measured(gate: Gate) -> str:
    if _counts_faults(gate):
        count = int(gate.measured or 0)
        return f"{count:,} fault{'' if count == 1 else 's'}"
    return _formatted(gate, gate.measured)


def _requirement(gate: Gate) -> str:
    """Returns the limit and, where it can be told, on which side of it the gate passes."""
    if _counts_faults(gate):
        return "none allowed"
    limit = _formatted(gate, gate.limit)
    higher = figures.higher_is_better(gate.name.removeprefix("live_"))
    if gate.measured is not None and gate.limit is not None and gate.measured != gate.limit:
        higher = gate.passed == (gate.measured > gate.limit)
    elif gate.name.endswith(_SELF_HITS):
        higher = True
    return f"limit {limit}" if higher is None else f"at {'least' if higher else 'most'} {limit}"


def _formatted(gate: Gate, value: float | None) -> str:
    """Returns the measured value or the limit; with all digits if rounding would make them look equal."""
    measured, limit = (_rounded(gate, number) for number in (gate.measured, gate.limit))
    if measured == limit and gate.measured != gate.limit and value is not None:
        return f"{value:.10g}"
    return _rounded(gate, value)


def _rounded(gate: Gate, value: float | None) -> str:
    if value is not None and gate.name.endswith(_SELF_HITS):
        return figures.percent(value)
    return figures.formatted(gate.name.removeprefix("live_"), value)
