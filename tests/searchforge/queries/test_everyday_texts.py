"""Everyday texts are distinct, depend only on their seed, and read like queries."""

from __future__ import annotations

import re

from searchforge.queries.everyday_texts import everyday_texts


def test_they_are_distinct_and_depend_on_the_seed() -> None:
    texts = everyday_texts(3000)
    assert len(set(texts)) == 3000
    assert everyday_texts(500) == texts[:500]
    assert len(set(everyday_texts(3000, seed=1)) & set(texts)) < 1000


def test_they_are_short_plain_english() -> None:
    texts = everyday_texts(3000)
    assert all(re.fullmatch(r"[A-Za-z]+( [A-Za-z]+)*", text) for text in texts)
    assert max(len(text.split()) for text in texts) <= 16
    assert not [text for text in texts if re.search(r"\b(a [aeio]|an [^aeiou])", text)]
    assert any("bicycle" in text for text in texts) and any("beach" in text for text in texts)
