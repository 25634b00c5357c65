"""The release that is live beside the candidate that may replace it: both are asked the same queries, in turns."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searchforge.artifacts.searcher import TEXT_SEARCHER
from searchforge.config import CheckConfig
from searchforge.errors import SearchforgeError
from serving_check.formats.index_file import read_index
from serving_check.formats.searcher_file import open_file
from serving_check.gate import Gate, at_least, at_most
from serving_check.measurement.corpus import Corpus
from serving_check.measurement.measure import K
from serving_check.measurement.queries import NO_ITEM, PROBES, Queries
from serving_check.measurement.search import Searcher
from serving_check.schema import Compared, LiveComparison

logger = logging.getLogger(__name__)

QUERIES = 200
"""Text queries that are asked, at most."""

_MIN_SHARED = 50
"""With fewer queries whose item both releases hold, R@k says too little to fail a candidate."""

_LATENCY_SLACK_MS = 1.0
"""A candidate that is slower by less passes, whatever the share of it."""


@dataclass(frozen=True)
class LiveRelease:
    """What is published.

    Attributes:
      created: time of publication, ISO 8601.
      searcher: id of the searcher that it was made from.
      folder: local, with its files.
      figures: of its own check.
    """

    id: str
    created: str
    searcher: str
    folder: Path
    figures: Mapping[str, Any]


def compare_live(
    live: LiveRelease, candidate: Path, queries: Queries, corpus: Corpus, figures: Mapping[str, Any]
) -> LiveComparison:
    """Asks both; a live release that cannot be asked is noted, and fails nobody.

    Args:
      candidate: folder of the searcher.
      queries: texts; without any, PROBES are asked, which tell latency and overlap.
      figures: of the candidate, as measured in this check.
    """
    logger.info(f"  compare with release {live.id}, which is live")
    texts = [*zip(queries.values, queries.targets, strict=True)][:QUERIES] or [(text, NO_ITEM) for text in PROBES]
    try:
        held = _ids(live.folder / TEXT_SEARCHER)
        with Searcher(candidate / TEXT_SEARCHER) as ours, Searcher(live.folder / TEXT_SEARCHER) as theirs:
            asked = [_ask(i, text, (ours, theirs)) for i, (text, _) in enumerate(texts)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SearchforgeError) as error:
        reason = str(error).partition("\n")[0]
        return _comparison(live, figures, note=f"the live release could not be asked: {reason}")
    hits = [tuple([hit.id for hit in found] for found, _ in pair) for pair in asked]
    overlap = [len({*a} & {*b}) / len(b) for a, b in hits if b]
    shared = [i for i, (_, row) in enumerate(texts) if row != NO_ITEM and corpus.ids[row] in held]
    measured: dict[str, tuple[float, float]] = {}
    for name, p in (("latency_p50_ms", 50), ("latency_p95_ms", 95)):
        a, b = (float(np.percentile([pair[side][1] for pair in asked], p)) for side in (0, 1))
        measured[name] = a, b
    if shared:
        for k in (1, K):
            a, b = (float(np.mean([corpus.ids[texts[i][1]] in hits[i][side][:k] for i in shared])) for side in (0, 1))
            measured[f"r_at_{k}"] = a, b
    few = (
        f"only {len(shared)} queries describe items of both, too few to compare R@10"
        if len(shared) < _MIN_SHARED
        else ""
    )
    return _comparison(live, figures, measured, len(asked), len(shared), float(np.mean(overlap or [0.0])), few)


def live_gates(compared: LiveComparison, config: CheckConfig) -> list[Gate]:
    """Returns the gates of a comparison; what could not be compared fails nobody."""
    found = {figure.name: (figure.candidate, figure.live) for figure in compared.figures}
    gates = []
    for name, drop in (("recall_at_10", config.max_recall_drop), ("r_at_10", config.max_r_at_10_drop)):
        ours, theirs = found.get(name, (None, None))
        enough = name == "recall_at_10" or compared.shared_queries >= _MIN_SHARED
        if drop is not None and theirs is not None and enough:
            gates.append(at_least(f"live_{name}", ours, theirs - drop))
    ours, theirs = found.get("latency_p50_ms", (None, None))
    if config.max_latency_growth is not None and theirs is not None:
        limit = max(theirs * (1 + config.max_latency_growth), theirs + _LATENCY_SLACK_MS)
        gates.append(at_most("live_latency_p50_ms", ours, limit))
    ours, theirs = found.get("searcher_bytes", (None, None))
    if config.max_size_growth is not None and theirs is not None:
        images, before = found["images"]
        grown = max(1.0, images / before) if images and before else 1.0
        gates.append(at_most("live_searcher_bytes", ours, theirs * (1 + config.max_size_growth) * grown))
    if config.min_overlap_at_10 is not None and compared.overlap_at_10 is not None:
        gates.append(at_least("live_overlap_at_10", compared.overlap_at_10, config.min_overlap_at_10))
    return gates


def _comparison(
    live: LiveRelease,
    figures: Mapping[str, Any],
    measured: Mapping[str, tuple[float, float]] | None = None,
    queries: int = 0,
    shared: int = 0,
    overlap: float | None = None,
    note: str = "",
) -> LiveComparison:
    from_checks = ("images", "recall_at_10", "bytes_per_image", "searcher_bytes")
    rows = {name: (figures.get(name), live.figures.get(name)) for name in from_checks}
    return LiveComparison(
        release=live.id,
        created=live.created,
        queries=queries,
        shared_queries=shared,
        overlap_at_10=overlap,
        figures=tuple(
            Compared(name=name, candidate=a, live=b) for name, (a, b) in {**rows, **(measured or {})}.items()
        ),
        note=note,
    )


def _ask(turn: int, text: str, searchers: Sequence[Searcher]) -> list[Any]:
    """Returns the answers of both, asked in an order that changes from query to query."""
    answers: list[Any] = [None, None]
    for side in (0, 1) if turn % 2 else (1, 0):
        answers[side] = searchers[side].timed_search(text, K)
    return answers


def _ids(path: Path) -> set[str]:
    table = open_file(path).index
    if table is None:
        raise ValueError(f"{path.name} holds no index")
    return {str(json.loads(metadata)["id"]) for metadata in read_index(table).metadata}
