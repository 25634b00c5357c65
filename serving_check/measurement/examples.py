"""Chooses example queries for the report: some with the lowest recall, and some at random."""

from __future__ import annotations

from typing import Literal

import numpy as np

from serving_check.measurement.corpus import Corpus
from serving_check.measurement.queries import NO_ITEM, Queries
from serving_check.measurement.retrieval import ExactComparison, SearchResults
from serving_check.schema import Example, FoundItem


def choose_examples(
    kind: Literal["text", "image"],
    queries: Queries,
    results: SearchResults,
    comparison: ExactComparison,
    corpus: Corpus,
    count: int,
    seed: int,
) -> list[Example]:
    """Returns `count` examples: half with the lowest recall, at most one per image, then half at random."""
    worst: list[int] = []
    taken: set[int] = set()
    for i in np.argsort(comparison.recall_at_10, kind="stable").tolist():
        if len(worst) < count // 2 and queries.groups[i] not in taken:
            worst.append(i)
            taken.add(queries.groups[i])
    others = [i for i in np.random.default_rng(seed).permutation(len(queries)).tolist() if i not in worst]
    return [
        Example(
            kind=kind,
            query=queries.values[i] if kind == "text" else corpus.ids[queries.targets[i]],
            own=corpus.ids[queries.targets[i]] if queries.targets[i] != NO_ITEM else "",
            hits=tuple(FoundItem(id=hit.id, score=hit.score) for hit in results.hits[i]),
            exact=tuple(
                FoundItem(id=corpus.ids[row], score=score)
                for row, score in zip(comparison.exact[i].tolist(), comparison.scores[i].tolist(), strict=True)
            ),
            recall_at_10=float(comparison.recall_at_10[i]),
        )
        for i in [*worst, *others[: count - len(worst)]]
    ]
