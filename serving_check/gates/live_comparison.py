"""Compares a candidate with the live release that it would replace, by asking both the same queries in turns."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from searchforge.artifacts.encoder import InputKind
from searchforge.artifacts.manifest import describe_reasons
from searchforge.artifacts.searcher import SEARCHERS
from searchforge.config import CheckConfig
from searchforge.errors import SearchforgeError
from serving_check.formats.index_file import read_index
from serving_check.formats.searcher_file import open_file
from serving_check.gate import Gate, at_least, at_most
from serving_check.measurement.corpus import Corpus
from serving_check.measurement.queries import NO_ITEM, Queries
from serving_check.measurement.retrieval import K
from serving_check.measurement.search import Searcher
from serving_check.schema import QUERY_KINDS, FigurePair, LiveComparison

logger = logging.getLogger(__name__)

QUERIES = 200
"""Maximum number of queries."""

_MIN_SHARED = 50
"""Minimum number of queries whose own item is in both for R@k to be compared."""

_LATENCY_SLACK_MS = 1.0
"""Increase in latency that always passes, however large it is relative to the live release."""


@dataclass(frozen=True)
class LiveRelease:
    """The release that is live.

    Attributes:
      created: Time of publication, ISO 8601.
      searcher: Id of the searcher that was published.
      folder: Local folder with its files.
      figures: Figures of its own check.
    """

    id: str
    created: str
    searcher: str
    folder: Path
    figures: Mapping[str, Any]


def compare_with_live(
    live: LiveRelease,
    candidate: Path,
    queries: Mapping[InputKind, Queries],
    corpus: Corpus,
    figures: Mapping[str, Any],
) -> LiveComparison:
    """Compares the candidate with the live release. An unreachable live release is logged and fails no gate.

    The text searchers are compared if both have one, else the image searchers.

    Args:
      candidate: Folder of the candidate's searcher.
      queries: Queries of each kind.
      figures: Figures of the candidate, as measured in this check.
    """
    logger.info(f"  comparing with the live release {live.id}")
    folders = candidate, live.folder
    kind = next((k for k in queries if all((folder / SEARCHERS[k]).is_file() for folder in folders)), None)
    if kind is None:
        expected = " or ".join(SEARCHERS[k] for k in queries)
        note = f"the live release could not be queried: it has no {expected}"
        logger.warning(f"  {note}")
        return _comparison(live, figures, note=note)
    asked = [*zip(queries[kind].values, queries[kind].targets, strict=True)][:QUERIES]
    try:
        live_ids = _ids(live.folder / SEARCHERS[kind])
        with Searcher(candidate / SEARCHERS[kind]) as ours, Searcher(live.folder / SEARCHERS[kind]) as theirs:
            results = [_search(i, query, (ours, theirs)) for i, (query, _) in enumerate(asked)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SearchforgeError) as error:
        reason = str(error).partition("\n")[0]
        note = f"the live release could not be queried: {reason}"
        logger.warning(f"  {note}")
        return _comparison(live, figures, note=note)
    hits = [tuple([hit.id for hit in found] for found, _ in pair) for pair in results]
    overlap = [len({*a} & {*b}) / len(b) for a, b in hits if b]
    shared = [i for i, (_, row) in enumerate(asked) if row != NO_ITEM and corpus.ids[row] in live_ids]
    measured: dict[str, tuple[float, float]] = {}
    for name, p in (("latency_p50_ms", 50), ("latency_p95_ms", 95)):
        a, b = (float(np.percentile([pair[side][1] for pair in results], p)) for side in (0, 1))
        measured[name] = a, b
    if shared:
        for k in (1, K):
            a, b = (float(np.mean([corpus.ids[asked[i][1]] in hits[i][side][:k] for i in shared])) for side in (0, 1))
            measured[f"r_at_{k}"] = a, b
    few = (
        f"only {len(shared)} queries describe items of both, fewer than the {_MIN_SHARED} needed to compare R@10"
        if len(shared) < _MIN_SHARED
        else ""
    )
    return _comparison(live, figures, measured, len(results), len(shared), float(np.mean(overlap or [0.0])), few)


def live_gates(
    comparison: LiveComparison,
    config: CheckConfig,
    rejected: Mapping[str, int] | None = None,
    allow_removal: bool = False,
) -> list[Gate]:
    """Returns the gates of a comparison. Figures that could not be compared have no gate.

    Args:
      rejected: Number of items of the corpus that could not be embedded, by reason.
      allow_removal: Whether a smaller number of items than `max_items_drop` allows passes.
    """
    found = {figure.name: (figure.candidate, figure.live) for figure in comparison.figures}
    gates = []
    for name, drop in (("recall_at_10", config.max_recall_drop), ("r_at_10", config.max_r_at_10_drop)):
        ours, theirs = found.get(name, (None, None))
        enough = name == "recall_at_10" or comparison.shared_queries >= _MIN_SHARED
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
    ours, theirs = found.get("images", (None, None))
    if config.max_items_drop is not None and theirs is not None:
        gate = at_least("live_images", ours, theirs - int(theirs * config.max_items_drop))
        if not gate.passed:
            reasons = describe_reasons(rejected or {})
            advice = "allowed by --allow-removal" if allow_removal else "--allow-removal accepts this for one run"
            detail = "; ".join(filter(None, (gate.detail, reasons and f"rejected: {reasons}", advice)))
            gate = replace(gate, passed=allow_removal and ours is not None, detail=detail)
        gates.append(gate)
    if config.min_overlap_at_10 is not None and comparison.overlap_at_10 is not None:
        gates.append(at_least("live_overlap_at_10", comparison.overlap_at_10, config.min_overlap_at_10))
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
    ours, theirs = (str(release.get("query_kind", "")) for release in (figures, live.figures))
    if ours and theirs and ours != theirs:
        del rows["recall_at_10"]  # it depends on the queries
        asked = f"this check asked with {_words(ours)}, that of the live release with {_words(theirs)}"
        other = f"recall@10 is not compared: {asked}"
        note = "; ".join(filter(None, (note, other)))
    return LiveComparison(
        release=live.id,
        created=live.created,
        queries=queries,
        shared_queries=shared,
        overlap_at_10=overlap,
        figures=tuple(
            FigurePair(name=name, candidate=a, live=b) for name, (a, b) in {**rows, **(measured or {})}.items()
        ),
        note=note,
    )


def _words(kind: str) -> str:
    return next((words for known, words in QUERY_KINDS.items() if known == kind), kind)


def _search(turn: int, query: str, searchers: Sequence[Searcher]) -> list[Any]:
    """Returns the results of both searchers, which go first in turns."""
    results: list[Any] = [None, None]
    for side in (0, 1) if turn % 2 else (1, 0):
        results[side] = searchers[side].timed_search(query, K)
    return results


def _ids(path: Path) -> set[str]:
    table = open_file(path).index
    if table is None:
        raise ValueError(f"{path.name} contains no index")
    return {str(json.loads(metadata)["id"]) for metadata in read_index(table).metadata}
