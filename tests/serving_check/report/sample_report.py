"""Complete reports of checks with untrusted text in every field that may contain it."""

from __future__ import annotations

from typing import Any

from serving_check.gate import Gate
from serving_check.schema import (
    CorpusCounts,
    Example,
    FigurePair,
    FoundItem,
    Histogram,
    HostileQuery,
    LiveComparison,
    Report,
)


def sample(text: str = "a dog", failed: bool = False, **changes: Any) -> Report:
    """Returns the report of a passed check, or of one with three failed gates.

    Args:
      text: Text of every query, id, detail, reason and setting.
      changes: Fields to replace.
    """
    gates = (
        Gate("codes", 2.0 if failed else 0.0, 0.0, not failed, text),
        Gate("recall_at_10", 0.8 if failed else 0.95, 0.9, not failed, "0.80, below the minimum of 0.90"),
        Gate("live_latency_p50_ms", 9.0, 8.0, not failed, text),
        Gate("items", 0.0, 0.0, True, "every item is there"),
        Gate("some_other_gate", None, None, True, text),
    )
    found = [FoundItem(id=f"{text}{i}", score=0.9 - i / 100) for i in range(12)]
    figures = {
        **{"images": 1000, "gallery": 1000, "query_kind": "text", "queries": 500, "queries_seen_by_tuner": 3},
        **{"recall_at_10": 0.95, "r_at_10": 0.741, "median_rank": 3.0, "latency_p50_ms": 5.1, "latency_p99_ms": 7.4},
        **{"memory_bytes": 137_000_000, "searcher_bytes": 32_400_000, "image_recall_at_10": None, "odd": text},
    }
    history = [{"epoch": epoch, "loss": 5 / epoch, "learning_rate": 0.1} for epoch in (1, 2, 3)]
    settings = {text: text, "towers": [text, text]}
    point = {"code_bytes": 64, "partitions": 9, "search_ms": 0.5, "recall_at_10": 0.9, "bytes_per_image": 70.0}
    values: dict[str, Any] = {
        "id": "check",
        "searcher": text,
        "created": "2026-01-01T00:00:00+00:00",
        "passed": not failed,
        "fingerprint": "f" * 64,
        "gates": gates,
        "figures": figures,
        "intervals": {"recall_at_10": (0.93, 0.97)},
        "latency": {"text": Histogram(edges=(0, 1, 2, 3), counts=(5, 9, 1))},
        "sizes": {"text_searcher.tflite": {"model": 900, "codes": 80, "other": 20}},
        "hostile": (
            HostileQuery(searcher="text_searcher.tflite", name=text, outcome="refused", detail=text),
            HostileQuery(searcher="text_searcher.tflite", name="empty", outcome="answered", detail=""),
        ),
        "examples": (
            Example(
                kind="text",
                query=text,
                own=f"{text}3",
                hits=tuple(found[:10]),
                exact=tuple(found[2:]),
                recall_at_10=0.8,
            ),
            Example(kind="image", query=f"{text}0", own=f"{text}0", hits=tuple(found[:3]), exact=(), recall_at_10=1.0),
        ),
        "corpus": CorpusCounts(
            modality="images", source=text, inputs=11, embedded=7, reused=3, rejected=1, rejected_by_reason={text: 1}
        ),
        "training": {"history": history, "settings": settings},
        "tradeoff": {
            "chosen": {"code_bytes": 64},
            "points": [point, {**point, "search_ms": 1.5, "recall_at_10": 0.97}],
        },
        "live": LiveComparison(
            release=text,
            created=text,
            queries=200,
            shared_queries=150,
            overlap_at_10=0.87,
            figures=(
                FigurePair(name="recall_at_10", candidate=0.95, live=0.94),
                FigurePair(name=text, candidate=1, live=None),
            ),
            note=text,
        ),
        "files": {"text_searcher.tflite": {"bytes": 1000, "sha256": "0" * 64}},
        "parameters": {"code_bytes": 64},
        "config": settings,
        "provenance": {"encoder": text, "embeddings": text, "searcher": text},
        "build": {"created": text, "seconds": {"total": 3.0}, "config": settings},
        "versions": {"python": "3.11"},
        "seconds": {"total": 30.0},
    }
    return Report(**{**values, **changes})
