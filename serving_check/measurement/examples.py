"""Queries of a check for people to look at: those that lost most, and some by chance."""

from __future__ import annotations

from typing import Literal

import numpy as np

from serving_check.measurement.corpus import Corpus
from serving_check.measurement.measure import Answers, Comparison
from serving_check.measurement.queries import NO_ITEM, Queries
from serving_check.schema import Example, FoundItem


def choose_examples(
    kind: Literal["text", "image"],
    queries: Queries,
    answers: Answers,
    compared: Comparison,
    corpus: Corpus,
    count: int,
    seed: int,
) -> list[Example]:
    """Returns half of `count` with the lowest recall, at most one of an image, then half by chance."""
    worst: list[int] = []
    taken: set[int] = set()
    for i in np.argsort(compared.recall_at_10, kind="stable").tolist():
        if len(worst) < count // 2 and queries.groups[i] not in taken:
            worst.append(i)
            taken.add(queries.groups[i])
    others = [i for i in np.random.default_rng(seed).permutation(len(queries)).tolist() if i not in worst]
    return [
        Example(
            kind=kind,
            query=queries.values[i] if kind == "text" else corpus.ids[queries.targets[i]],
            own=corpus.ids[queries.targets[i]] if queries.targets[i] != NO_ITEM else "",
            hits=tuple(FoundItem(id=hit.id, score=hit.score) for hit in answers.hits[i]),
            exact=tuple(
                FoundItem(id=corpus.ids[row], score=score)
                for row, score in zip(compared.exact[i].tolist(), compared.scores[i].tolist(), strict=True)
            ),
            recall_at_10=float(compared.recall_at_10[i]),
        )
        for i in [*worst, *others[: count - len(worst)]]
    ]
