"""Runs queries and compares the results with exact search over the full-precision embeddings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.errors import SearchforgeError
from searchforge.progress import track
from searchforge.reporting.intervals import median_interval, share_interval
from serving_check.measurement.corpus import Corpus
from serving_check.measurement.queries import NO_ITEM, Queries
from serving_check.measurement.search import Hit, Searcher
from serving_check.schema import Histogram

K = 10
"""Number of hits of an ordinary search."""

WIDE = 100
"""Number of hits of a search that measures recall only, not latency."""

_WARM_UP = 5
_BINS = 40

_BATCH = 32
"""Number of queries whose exact scores are computed at once: 128 MB for a million items."""

_TIE = 1e-6
"""Difference of exact scores below which items count as equal, such as duplicates of an image."""


class QueryError(Exception):
    """A query that was not answered; the message names it."""


@dataclass(frozen=True)
class SearchResults:
    """Results and timings of all queries.

    Attributes:
      hits: The K hits of each query, best first.
      wide: The ids of the WIDE hits of each query, best first.
      embeddings: [queries, dim] float32, embeddings of the queries by the bundle's encoder.
      search_ms, embed_ms: [queries] milliseconds on one thread; a search includes the encoding of its query.
    """

    hits: list[list[Hit]]
    wide: list[list[str]]
    embeddings: npt.NDArray[np.float32]
    search_ms: npt.NDArray[np.float64]
    embed_ms: npt.NDArray[np.float64]

    @property
    def latency(self) -> dict[str, float]:
        """Percentiles in milliseconds of a search, and of its encoding alone."""
        return {
            **{f"latency_p{p}_ms": float(np.percentile(self.search_ms, p)) for p in (50, 95, 99)},
            "encoding_p50_ms": float(np.percentile(self.embed_ms, 50)),
        }

    @property
    def histogram(self) -> Histogram:
        """Milliseconds of the searches, from 0 to the 99th percentile; the last bin includes slower ones."""
        edges = np.linspace(0, float(np.percentile(self.search_ms, 99)) or 1.0, _BINS + 1)
        counts, _ = np.histogram(np.minimum(self.search_ms, edges[-1]), edges)
        return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


@dataclass(frozen=True)
class ExactComparison:
    """A searcher's results compared with exact search.

    Attributes:
      figures: See `compare_with_exact`.
      intervals: 95 percent confidence intervals of some figures.
      recall_at_10: [queries] recall of each query.
      exact: [queries, up to K] rows of the exact results, best first.
      scores: [queries, up to K] their dot products.
    """

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    recall_at_10: npt.NDArray[np.float64]
    exact: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


def run_queries(searcher: Searcher, encoder: Path, queries: Sequence[str], label: str) -> SearchResults:
    """Runs queries one at a time.

    Args:
      encoder: Encoder of the bundle, which embeds queries for exact search; the searcher's embeddings may be mapped.
      label: Label of the progress display.

    Raises:
      QueryError: The process crashed on a query, or answered with an error.
    """
    searched, embedded, wide = [], [], []
    with track(label, 3 * len(queries)) as advance:
        for query in queries[:_WARM_UP]:
            _run(searcher.timed_search, query, K)
        for query in queries:
            searched.append(_run(searcher.timed_search, query, K))
            advance(1)
        for query in queries:
            embedded.append(_run(searcher.timed_embed, query, encoder))
            advance(1)
        for query in queries:  # last, because a searcher that was opened for more hits is slower
            wide.append([hit.id for hit in _run(searcher.timed_search, query, WIDE)[0]])
            advance(1)
    return SearchResults(
        hits=[hits for hits, _ in searched],
        wide=wide,
        embeddings=np.stack([embedding for embedding, _ in embedded]),
        search_ms=np.array([milliseconds for _, milliseconds in searched]),
        embed_ms=np.array([milliseconds for _, milliseconds in embedded]),
    )


def embed(searcher: Searcher, queries: Sequence[str], encoder: Path | None = None) -> list[npt.NDArray[np.float32]]:
    """Returns each query's embedding [dim] float32 by the searcher, or by another encoder; raises QueryError."""
    return [_run(searcher.timed_embed, query, encoder)[0] for query in queries]


def multithreaded_latency(searcher: Searcher, queries: Sequence[str]) -> dict[str, float]:
    """Opens a searcher with a thread for each core; returns their number and the median milliseconds of a search."""
    threads = len(os.sched_getaffinity(0))
    searcher.reopen(threads)
    for query in queries[:_WARM_UP]:
        _run(searcher.timed_search, query, K)
    milliseconds = [_run(searcher.timed_search, query, K)[1] for query in queries]
    return {"threads": threads, "threads_p50_ms": float(np.median(milliseconds))}


def compare_with_exact(results: SearchResults, queries: Queries, corpus: Corpus) -> ExactComparison:
    """Compares results with exact search. The figures are:

    recall_at_1, recall_at_10, recall_at_100: share of the exact top k that the searcher returned.
    r_at_1, r_at_5, r_at_10: share of queries whose own item is among the searcher's first k hits.
    exact_r_at_1, exact_r_at_5, exact_r_at_10: the same for exact search; ties count against the query.
    median_rank: median rank of the query's own item in exact search; 1 is best.
    own_or_equal_at_10: like r_at_10, but an item with the same score, such as a duplicate, counts as the query's own
      item.

    All but recall are measured on the queries that describe an item of the corpus, and absent if none does.
    """
    count, depth = len(corpus.ids), min(K, len(corpus.ids))
    recall: dict[int, list[float]] = {1: [], K: [], WIDE: []}
    exact_rows, exact_scores = np.empty((len(queries), depth), np.int64), np.empty((len(queries), depth), np.float32)
    # Ranks of each query's own item in the searcher's and in the exact results; whether it or an equal item was found.
    own: list[tuple[int, int, bool]] = []
    for start in range(0, len(queries), _BATCH):
        for query, scores in enumerate(results.embeddings[start : start + _BATCH] @ corpus.vectors.T, start):
            wide = min(WIDE, count)
            top = np.argpartition(scores, -wide)[-wide:]
            top = top[np.argsort(-scores[top], kind="stable")]
            exact_rows[query], exact_scores[query] = top[:depth], scores[top[:depth]]
            rows = _rows([hit.id for hit in results.hits[query]], corpus)
            for k, found in recall.items():
                hits = _rows(results.wide[query], corpus) if k == WIDE else rows[:k]
                expected = min(k, count)
                found.append(np.count_nonzero(scores[hits] >= scores[top[expected - 1]] - _TIE) / expected)
            if (mine := queries.targets[query]) != NO_ITEM:
                own.append(
                    (
                        rows.index(mine) if mine in rows else count,
                        int(np.count_nonzero(scores >= scores[mine])) - 1,
                        bool(np.any(scores[rows] >= scores[mine] - _TIE)),
                    )
                )
    groups = np.array(queries.groups)
    figures, intervals = {}, {}
    for k, found in recall.items():
        shares = np.array(found)
        figures[f"recall_at_{k}"] = float(shares.mean())
        intervals[f"recall_at_{k}"] = share_interval(shares, groups, min(k, count))
    if own:
        ours, exact, equal = (np.array(column) for column in zip(*own, strict=True))
        groups = groups[queries.with_item]
        for prefix, ranks in (("", ours), ("exact_", exact)):
            for k in (1, 5, K):
                figures[f"{prefix}r_at_{k}"] = float((ranks < k).mean())
                intervals[f"{prefix}r_at_{k}"] = share_interval(ranks < k, groups)
        figures["median_rank"] = float(np.median(exact + 1))
        intervals["median_rank"] = median_interval(exact + 1, groups)
        figures[f"own_or_equal_at_{K}"] = float(equal.mean())
    return ExactComparison(figures, intervals, np.array(recall[K]), exact_rows, exact_scores)


def _rows(ids: Sequence[str], corpus: Corpus) -> list[int]:
    """Returns the rows of the distinct ids that the corpus has."""
    return [corpus.row_of[id] for id in dict.fromkeys(ids) if id in corpus.row_of]


def _run(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except SearchforgeError as error:
        query = str(arguments[0])
        shortened = query if len(query) <= 200 else f"{query[:200]}... ({len(query)} characters)"
        raise QueryError(f"query {shortened!r}: {error}") from error
