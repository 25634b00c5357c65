"""Asks a searcher queries and measures its answers against exact search over the full-precision embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.errors import SearchforgeError
from searchforge.progress import track
from serving_check.corpus import Corpus, Queries
from serving_check.search import Searcher

K = 10
"""Hits asked for."""

_WARM_UP = 5
_BATCH = 32
"""Queries whose exact scores are computed at once: 128 MB for a million items."""

_TIE = 1e-6
"""Items whose exact scores differ by less stand for each other: duplicates of an image, say."""


class QueryFailed(Exception):
    """A query was not answered; the message names it."""


@dataclass(frozen=True)
class Answers:
    """What a searcher returned.

    Attributes:
      hits: for each query the ids of its hits, best first.
      embeddings: [queries, dim] float32, of the queries, by the bundle's encoder.
      search_ms, embed_ms: [queries], one query on one thread; searching includes the encoding.
    """

    hits: list[list[str]]
    embeddings: npt.NDArray[np.float32]
    search_ms: npt.NDArray[np.float64]
    embed_ms: npt.NDArray[np.float64]


def ask(searcher: Searcher, queries: list[str], label: str) -> Answers:
    """Asks every query alone.

    Raises:
      QueryFailed: the process crashed on a query, or answered with an error.
    """
    searched, embedded = [], []
    with track(label, 2 * len(queries)) as advance:
        for query in queries[:_WARM_UP]:
            _guarded(searcher.timed_search, query, K)
        for query in queries:
            searched.append(_guarded(searcher.timed_search, query, K))
            advance(1)
        for query in queries:
            embedded.append(_guarded(searcher.timed_embed, query))
            advance(1)
    return Answers(
        hits=[[hit.id for hit in hits] for hits, _ in searched],
        embeddings=np.stack([embedding for embedding, _ in embedded]),
        search_ms=np.array([milliseconds for _, milliseconds in searched]),
        embed_ms=np.array([milliseconds for _, milliseconds in embedded]),
    )


def compare(answers: Answers, queries: Queries, corpus: Corpus) -> dict[str, float]:
    """Returns index quality and retrieval quality.

    recall_at_1, recall_at_10: share of the exact top k (full-precision embeddings) that the searcher returned.
    r_at_1, r_at_5, r_at_10: share of queries whose own item is among the searcher's first k hits.
    exact_r_at_1, exact_r_at_5, exact_r_at_10: the same for exact search; items that score the same come first.
    own_or_equal_at_10: like r_at_10, but an item that scores the same, such as a copy, stands for a query's own.
    """
    recall: dict[int, list[float]] = {1: [], K: []}
    ranks, own, own_or_equal = [], [], []
    for start in range(0, len(queries), _BATCH):
        batch = slice(start, start + _BATCH)
        all_scores = answers.embeddings[batch] @ corpus.vectors.T
        for scores, ids, target in zip(all_scores, answers.hits[batch], queries.targets[batch], strict=True):
            rows = [corpus.row_of[id] for id in dict.fromkeys(ids) if id in corpus.row_of]
            best = np.sort(np.partition(scores, -min(K, len(scores)))[-K:])[::-1]
            for k, found in recall.items():
                exact = best[:k]
                found.append(np.count_nonzero(scores[rows[:k]] >= exact[-1] - _TIE) / len(exact))
            ranks.append(np.count_nonzero(scores >= scores[target]) - 1)
            own_or_equal.append(bool(np.any(scores[rows[:K]] >= scores[target] - _TIE)))
            own.append(rows.index(target) if target in rows else len(scores))
    quality = {f"recall_at_{k}": float(np.mean(found)) for k, found in recall.items()}
    quality[f"own_or_equal_at_{K}"] = float(np.mean(own_or_equal))
    for k in (1, 5, K):
        quality[f"r_at_{k}"] = float(np.mean([rank < k for rank in own]))
        quality[f"exact_r_at_{k}"] = float(np.mean([rank < k for rank in ranks]))
    return quality


def latency(answers: Answers) -> dict[str, float]:
    """Returns percentiles in milliseconds: of a whole search, and of its encoding alone."""
    return {
        "latency_p50_ms": float(np.percentile(answers.search_ms, 50)),
        "latency_p99_ms": float(np.percentile(answers.search_ms, 99)),
        "encoding_p50_ms": float(np.percentile(answers.embed_ms, 50)),
    }


def _guarded(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except SearchforgeError as error:
        query = str(arguments[0])
        shown = query if len(query) <= 200 else f"{query[:200]}... ({len(query)} characters)"
        raise QueryFailed(f"query {shown!r}: {error}") from error
