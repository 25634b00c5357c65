"""Schema of a check's report, `report.json`: what was verified, measured and decided."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from searchforge.reporting.charts import is_number
from serving_check.gate import Gate

REPORT_VERSION: Literal[2] = 2
"""Version of report.json, incremented when a field is removed or changes its meaning."""

Figure = float | int | str | None

QueryKind = Literal["text", "query_log", "everyday_text", "image", "corpus_text"]

QUERY_KINDS: dict[QueryKind, str] = {
    "text": "held-out captions",
    "query_log": "queries of the query log",
    "everyday_text": "everyday texts",
    "image": "images of the corpus",
    "corpus_text": "texts of the corpus, which should find themselves",
}
"""Kinds of queries that recall is measured with (the figure `query_kind`), with the words for them."""

WITHOUT_ANSWERS = ("query_log", "everyday_text")
"""Kinds of queries without an answer key: no item of the corpus is known to be the right one."""


class _ReportModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Histogram(_ReportModel):
    """Number of values between consecutive edges.

    Attributes:
      edges: n + 1 ascending values.
      counts: n numbers; the last one includes values beyond the last edge.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class FoundItem(_ReportModel):
    """An item of the corpus and its score for a query (dot product); None if the score is not a finite number."""

    id: str
    score: float | None


class Example(_ReportModel):
    """A query of the check and its results.

    Attributes:
      kind: Type of the query.
      query: The text; for an image query, the id of the item whose image was the query.
      own: Id of the item that the query describes or is; empty if it is not in the corpus.
      hits: Results of the searcher, best first, with the index's approximate scores.
      exact: Results of exact search over the full-precision embeddings, best first.
      recall_at_10: Share of the exact top ten that the searcher returned.
    """

    kind: Literal["text", "image"]
    query: str
    own: str
    hits: tuple[FoundItem, ...]
    exact: tuple[FoundItem, ...]
    recall_at_10: float


class HostileQuery(_ReportModel):
    """The outcome of a query that is designed to cause trouble.

    Attributes:
      searcher: File name of the searcher.
      name: What makes the query hostile.
      outcome: `refused` is an error with a reason; `failed` is a crash, a timeout, or hits outside the corpus.
      detail: Reason of the refusal or failure.
    """

    searcher: str
    name: str
    outcome: Literal["answered", "refused", "failed"]
    detail: str


class CorpusCounts(_ReportModel):
    """Counts of the embedding run: inputs = embedded + reused + rejected.

    Attributes:
      source: Location of the corpus.
    """

    modality: Literal["images", "texts"]
    source: str
    inputs: int
    embedded: int
    reused: int
    rejected: int
    rejected_by_reason: dict[str, int]


class FigurePair(_ReportModel):
    """A figure of the candidate and of the live release; None where it was not measured.

    Attributes:
      name: Key of `Report.figures`.
    """

    name: str
    candidate: float | None
    live: float | None


class LiveComparison(_ReportModel):
    """Comparison of the candidate with the live release.

    Attributes:
      release, created: Id and time of publication (ISO 8601) of the live release.
      queries: Number of text queries that both searchers were asked in turns.
      shared_queries: Number of those whose own item is in both; R@k is measured on these.
      overlap_at_10: Mean share of the live release's top ten that the candidate also returns in its top ten.
      figures: Retrieval and latency as measured in this check; recall of the live release is from its own check.
      note: Reason why a part could not be compared; empty if everything was.
    """

    release: str
    created: str
    queries: int
    shared_queries: int
    overlap_at_10: float | None
    figures: tuple[FigurePair, ...]
    note: str


class Report(_ReportModel):
    """Contents of checks/<id>/report.json.

    Attributes:
      created: UTC time of the check, ISO 8601.
      passed: Whether every gate passed.
      fingerprint: Fingerprint of the encoder that embedded the corpus.
      gates: Outcomes in the order of display.
      figures: Measured values by name; docs/checking.md lists them with their units. A figure that could not be
        measured is None or absent.
      intervals: 95 percent confidence intervals (low, high) of figures that are shares or medians over queries.
      latency: Histograms of a search's milliseconds, for `text` and `image`.
      sizes: Bytes by part for each searcher file: `model`, `vocabulary`, `codes`, `centroids_and_codebooks`,
        `metadata` and `other`, which add up to the file's size.
      hostile: Outcomes of all hostile queries.
      examples: Queries with their results, those with the lowest recall first.
      training: `history` (see searchforge.reporting.charts) and `settings` of the encoder's training, as far as the
        bundle has them.
      tradeoff: tradeoff.json of the searcher: `chosen`, and `points` with `recall_at_10`, `search_ms`, `code_bytes`,
        `bytes_per_image`; None if the index was not tuned.
      live: Comparison with the live release; None if no other searcher is live.
      files: `bytes` and `sha256` by file name.
      parameters: Parameters of the index.
      config: The `check` section of the configuration.
      provenance: Ids of the `encoder`, the `embeddings` and the `searcher`.
      build: `created`, `seconds` and the `config` of the index, from the searcher's build.json.
      versions: Versions of Python and of the packages that affect the figures.
      seconds: Wall time of the check by step, and in `total`.
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
    """Returns the verdict, the queries and every gate as text."""
    lines = [f"checks/{report.id}: {'passed' if report.passed else 'FAILED'}"]
    if text := conditions(report):
        lines.append(f"  {text}")
    for gate in report.gates:
        lines.append(f"  {'ok    ' if gate.passed else 'FAILED'} {gate.name}: {gate.detail}")
    return "\n".join(lines)


def conditions(report: Report) -> str:
    """Returns a sentence (without a full stop) with the number and kind of the queries and the searched items."""
    found, text = report.figures, ""
    kind = str(found.get("query_kind"))
    if is_number(found.get("queries")):
        words = next((words for known, words in QUERY_KINDS.items() if known == kind), "queries")
        text = f"Measured with {found['queries']:,} {words}"
    if text and found.get("queries_seen_by_tuner"):
        text += f" ({found['queries_seen_by_tuner']:,} of which the tuner had seen)"
    if is_number(found.get("gallery")):
        text += f" among {found['gallery']:,} {report.corpus.modality}"
    if text and kind in WITHOUT_ANSWERS:
        text += " (R@k is not measured: these queries have no answer key)"
    return text
