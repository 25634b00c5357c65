"""Texts of a source are divided by use, drawn by their counts, and passed over if an encoder embeds them alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from searchforge.captions.query_texts import TextsByUse, Use, choose_source, degeneracy, text_sources
from searchforge.config import DataConfig

USES: tuple[Use, ...] = ("training", "tuning", "verification", "check")


def _log(tmp_path: Path, lines: list[str]) -> DataConfig:
    path = tmp_path / "queries.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return DataConfig(queries=str(path))


def _sources(data: DataConfig) -> list[TextsByUse]:
    return [source for source in text_sources(data) if isinstance(source, TextsByUse)]


def test_every_text_has_one_use_that_no_seed_order_or_spelling_changes(tmp_path: Path) -> None:
    lines = [f"query {i}" for i in range(1200)]
    log, everyday = _sources(_log(tmp_path, lines))
    assert [log.source, everyday.source] == ["query_log", "everyday_text"]
    uses = {use: log.sample(use, 10_000, seed=0) for use in USES}
    assert sorted(text for texts in uses.values() for text in texts) == sorted(lines)
    assert min(map(len, uses.values())) > 150 and len(uses["training"]) > 500
    other = _sources(_log(tmp_path, [line.upper() for line in reversed(lines)] + ["more"]))[0]
    for use in USES:
        assert {text.lower() for text in other.sample(use, 10_000, seed=7)} - {"more"} == set(uses[use])
    assert min(len(everyday.sample(use, 10_000, seed=0)) for use in USES) > 2000


def test_frequent_queries_are_drawn_first_and_the_seed_chooses_among_equal_ones(tmp_path: Path) -> None:
    lines = [f"query {i}\t{1000 if i % 10 == 0 else 1}" for i in range(3000)]
    log = _sources(_log(tmp_path, lines))[0]
    drawn = log.sample("training", 100, seed=0)
    frequent = [text for text in drawn if int(text.split()[1]) % 10 == 0]
    assert len(frequent) > 90
    assert log.sample("training", 50, seed=0) == drawn[:50]
    assert set(log.sample("training", 100, seed=1)) != set(drawn)


def test_a_small_log_is_passed_over_with_the_reason(tmp_path: Path) -> None:
    reasons: list[str] = []
    rows = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    found = choose_source(_log(tmp_path, ["red", "blue"]), lambda source: rows, reasons.append)
    assert found and found.source == "everyday_text"
    assert reasons[0].endswith("queries.txt has 2 distinct queries, fewer than the 200 needed")


@pytest.mark.parametrize("kind", ["equal", "zeros", "nan", "alike", "few"])
def test_an_encoder_that_embeds_texts_alike_cannot_use_them(kind: str) -> None:
    random = np.random.default_rng(0)
    rows = {
        "equal": np.ones((200, 16)),
        "zeros": np.zeros((200, 16)),
        "nan": np.full((200, 16), np.nan),
        "alike": 1 + 0.1 * random.normal(size=(200, 16)),
        "few": np.eye(16)[random.integers(16, size=200)],
    }[kind].astype(np.float32)
    assert "embeds" in (degeneracy(rows) or "")
    reasons: list[str] = []
    assert choose_source(DataConfig(), lambda source: rows, reasons.append) is None
    assert len(reasons) == 1


def test_an_encoder_that_tells_texts_apart_can_use_them() -> None:
    random = np.random.default_rng(0)
    assert degeneracy(random.normal(size=(200, 16)).astype(np.float32)) is None
    assert degeneracy((1 + random.normal(size=(200, 16))).astype(np.float32)) is None  # mean cosine of about 0.5
