"""The report of a check, `report.json`: what was verified, measured and decided, in a documented, versioned form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving_check.gate import Gate

REPORT_VERSION: Literal[2] = 2
"""Of report.json; raised when a field changes its meaning or goes."""

Figure = float | int | str | None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Histogram(_Part):
    """How often a value fell between two edges.

    Attributes:
      edges: n + 1 ascending values.
      counts: n numbers; values beyond the last edge are in the last one.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class FoundItem(_Part):
    """An item of the corpus, and its score (the dot product) for a query; None where that is no number."""

    id: str
    score: float | None


class Example(_Part):
    """One query of the check, and what it found.

    Attributes:
      kind: what the query is.
      query: the text; of an image query the id of the item whose image it is.
      own: id of the item that the query describes or is.
      hits: of the searcher, best first, scored as the index approximates them.
      exact: of exact search over the full-precision embeddings, best first.
      recall_at_10: share of the exact ten that the searcher returned.
    """

    kind: Literal["text", "image"]
    query: str
    own: str
    hits: tuple[FoundItem, ...]
    exact: tuple[FoundItem, ...]
    recall_at_10: float


class HostileQuery(_Part):
    """A query that nobody should ask, and how the searcher took it.

    Attributes:
      searcher: file that was asked.
      name: what is hostile about it.
      outcome: `refused` is an error with a reason; `failed` is a crash, a hang, or hits that are not of the corpus.
      detail: the reason, or what went wrong.
    """

    searcher: str
    name: str
    outcome: Literal["answered", "refused", "failed"]
    detail: str


class CorpusCounts(_Part):
    """What went into the embedding run: inputs = embedded + reused + rejected.

    Attributes:
      source: where the corpus was listed.
    """

    modality: Literal["images", "texts"]
    source: str
    inputs: int
    embedded: int
    reused: int
    rejected: int
    rejected_by_reason: dict[str, int]


class Compared(_Part):
    """A figure of the candidate beside the live release's; None where it could not be had.

    Attributes:
      name: key of `Report.figures`.
    """

    name: str
    candidate: float | None
    live: float | None


class LiveComparison(_Part):
    """The candidate beside the release that is live.

    Attributes:
      release, created: id and time of publication (ISO 8601) of the live release.
      queries: text queries that both were asked in turns in this check.
      shared_queries: those of them whose own item both releases hold; R@k of both is measured on these.
      overlap_at_10: mean share of the live release's first ten hits that the candidate returns among its ten.
      figures: retrieval and latency as measured in this check; recall as the live release's own check measured it.
      note: why a part could not be compared; empty: all was.
    """

    release: str
    created: str
    queries: int
    shared_queries: int
    overlap_at_10: float | None
    figures: tuple[Compared, ...]
    note: str


class Report(_Part):
    """Contents of checks/<id>/report.json.

    Attributes:
      created: UTC time of the check, ISO 8601.
      passed: whether every gate was.
      fingerprint: of the encoder that the corpus was embedded with.
      gates: in the order in which they are shown.
      figures: what was measured, by name; docs/checking.md lists them with their units. A figure that could not be
        measured is None or not there.
      intervals: 95 percent intervals (low, high) of those figures that are shares or medians over queries.
      latency: milliseconds of a search, for `text` and `image`.
      sizes: bytes by part, for each searcher file: `model`, `vocabulary`, `codes`, `centroids_and_codebooks`,
        `metadata`, `other`, which add up to the file.
      hostile: every hostile query that was asked.
      examples: queries for people to look at, those with the lowest recall first.
      training: of the encoder: `history` (see searchforge.reporting.charts) and `settings`; empty where it says
        nothing.
      tradeoff: what the tuner saw (tradeoff.json of the searcher): `chosen`, and `points` with `recall_at_10`,
        `search_ms`, `code_bytes`, `bytes_per_image`; None where it did not tune.
      live: None where no release was live, or it is this very searcher.
      files: `bytes` and `sha256` by name.
      parameters: of the index.
      config: the `check` section of the configuration.
      provenance: ids of the `encoder`, the `embeddings` and the `searcher`.
      build: of the searcher: `created`, `seconds` and the `config` of the index.
      versions: of Python and the packages that the figures depend on.
      seconds: wall time of the check by step, and `total`.
    """

    version: Literal[2] = REPORT_VERSION
    id: str
    searcher: str
    created: str
    passed: bool
    fingerprint: str
    gates: tuple[Gate, ...]
    figures: dict[str, Figure]
    intervals: dict[str, tuple[float, float]]
    latency: dict[Literal["text", "image"], Histogram]
    sizes: dict[str, dict[str, int]]
    hostile: tuple[HostileQuery, ...]
    examples: tuple[Example, ...]
    corpus: CorpusCounts
    training: dict[str, Any]
    tradeoff: dict[str, Any] | None
    live: LiveComparison | None
    files: dict[str, dict[str, Any]]
    parameters: dict[str, Any]
    config: dict[str, Any]
    provenance: dict[str, str]
    build: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float] = Field(description="wall time")


def summary(report: Report) -> str:
    """Returns the verdict, every gate and the main figures, for people."""
    lines = [f"checks/{report.id}: {'passed' if report.passed else 'FAILED'}"]
    for gate in report.gates:
        lines.append(f"  {'ok    ' if gate.passed else 'FAILED'} {gate.name}: {gate.detail}")
    return "\n".join(lines)
