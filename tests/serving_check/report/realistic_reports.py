"""Realistic reports of checks: passed, failed, of a text corpus, and of a searcher that could not be opened."""

from __future__ import annotations

import functools
import io
import math
import random
from collections.abc import Sequence
from typing import Any

from infra.demo.scenes import describe, draw_scene, random_scene
from serving_check.gate import Gate, at_least, at_most, no_faults
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

FINGERPRINT = "bcd24f58209fda14f11916d19a8e8216308603c06d93728f3c33f0038c893692"

Items = Sequence[tuple[str, str]]
"""Ids and captions of items."""


def scenes(count: int = 60) -> Items:
    """Returns scenes whose images `picture` returns."""
    return [(f"scene-{index:05d}.jpg", describe(*_scene(index))[0]) for index in range(count)]


@functools.cache
def picture(id: str) -> bytes | None:
    """Returns the image of a scene as a JPEG; None for any other id."""
    number = id.removeprefix("scene-").removesuffix(".jpg")
    if not number.isdecimal():
        return None
    file = io.BytesIO()
    draw_scene(*_scene(int(number))).save(file, "JPEG", quality=90)
    return file.getvalue()


def passed(items: Items | None = None) -> Report:
    """Returns the report of a searcher that passed and is slightly better than the live release."""
    figures = _figures()
    return _report(items or scenes(), figures, [*_structural(), *_measured(figures)], live=_live(figures))


def failed(items: Items | None = None) -> Report:
    """Returns the same report with three failed gates."""
    worse = {"recall_at_10": 0.8712, "image_recall_at_10": 0.9015, "latency_p95_ms": 7.63, "latency_p99_ms": 14.31}
    figures = {**_figures(), **worse}
    unknown = no_faults("known_ids", ["unknown id 'renamed-17.jpg'", "unknown id 'renamed-18.jpg'"], "")
    gates = [unknown if gate.name == "known_ids" else gate for gate in _structural()]
    return _report(items or scenes(), figures, [*gates, *_measured(figures)], live=_live(figures), misses=5)


def of_texts() -> Report:
    """Returns the report of a text corpus without images, a live release or tuning."""
    items = [(f"article/{index:04d}", caption) for index, (_, caption) in enumerate(scenes())]
    images = ("image", "r_at", "exact_r_at", "median")
    figures = {name: value for name, value in _figures().items() if not name.startswith(images)}
    figures |= {"images": 1200, "gallery": 1200, "query_kind": "corpus_text", "own_or_equal_at_10": 0.994}
    gates = [gate for gate in _structural() if gate.name != "images_find_themselves"]
    gates.append(at_least("texts_find_themselves", 0.994, 0.8))
    report = _report(items, figures, [*gates, *_measured(figures)], live=None)
    corpus = {"modality": "texts", "source": "gs://articles/2026/*.jsonl", "inputs": 1200, "embedded": 1200}
    return report.model_copy(
        update={
            "corpus": CorpusCounts(**corpus, reused=0, rejected=0, rejected_by_reason={}),  # type: ignore[arg-type]
            "examples": tuple(example for example in report.examples if example.kind == "text"),
            "latency": {"text": report.latency["text"]},
            "sizes": {"text_searcher.tflite": report.sizes["text_searcher.tflite"]},
            "tradeoff": None,
            "training": {},
        }
    )


def unopened() -> Report:
    """Returns the report of a searcher that could not be opened, so that nothing was measured."""
    gates = (
        Gate("opens", None, None, False, "text_searcher.tflite cannot open: the file is cut off"),
        at_least("recall_at_10", None, 0.9),
    )
    corpus = CorpusCounts(
        modality="images", source="", inputs=0, embedded=0, reused=0, rejected=0, rejected_by_reason={}
    )
    nothing: dict[str, Any] = {
        **{name: {} for name in ("figures", "intervals", "latency", "sizes", "training", "files", "parameters")},
        **{name: {} for name in ("config", "provenance", "build", "versions", "seconds")},
        **dict.fromkeys(("hostile", "examples"), ()),
        **dict.fromkeys(("tradeoff", "live"), None),
    }
    return Report(
        id="0" * 16,
        searcher="1" * 16,
        created="2026-11-24T16:07:33+00:00",
        passed=False,
        fingerprint="",
        gates=gates,
        corpus=corpus,
        **nothing,
    )


def example(own: str, query: str, hits: Sequence[str], exact: Sequence[str], kind: Any = "text") -> Example:
    """Returns an example with scores from 0.9 downwards."""
    return Example(
        kind=kind,
        query=query,
        own=own,
        hits=tuple(FoundItem(id=id, score=0.9 - 0.013 * place) for place, id in enumerate(hits)),
        exact=tuple(FoundItem(id=id, score=0.89 - 0.012 * place) for place, id in enumerate(exact)),
        recall_at_10=len(set(hits) & set(exact)) / max(1, len(exact)),
    )


def _report(
    items: Items, figures: dict[str, Any], gates: Sequence[Gate], live: LiveComparison | None, misses: int = 3
) -> Report:
    index = {"codes": 517_824, "centroids_and_codebooks": 193_204, "metadata": 242_730}
    shares = ("recall_at", "r_at", "exact_r_at")
    return Report(
        id="150b81637f111a4b",
        searcher="2da5a35f324a316c",
        created="2026-11-24T16:07:33.918080+00:00",
        passed=all(gate.passed for gate in gates),
        fingerprint=FINGERPRINT,
        gates=tuple(gates),
        figures=figures,
        intervals={
            **{
                name: (max(0.0, value - 0.021), min(1.0, value + 0.018))
                for name, value in figures.items()
                if name.removeprefix("image_").startswith(shares)
            },
            **{"median_rank": (3.0, 5.0), "latency_p50_ms": (4.61, 4.88), "image_latency_p50_ms": (10.42, 11.05)},
        },
        latency={"text": _histogram(4.7, 0), "image": _histogram(10.7, 1)},
        sizes={
            "text_searcher.tflite": {"model": 22_713_344, "vocabulary": 231_508, **index, "other": 4_312},
            "image_searcher.tflite": {"model": 11_333_810, "vocabulary": 0, **index, "other": 3_970},
        },
        hostile=tuple(
            HostileQuery(searcher=searcher, name=name, outcome=outcome, detail=detail)
            for searcher in ("text_searcher.tflite", "image_searcher.tflite")
            for name, outcome, detail in _HOSTILE
        ),
        examples=tuple(_examples(items, misses)),
        corpus=CorpusCounts(
            modality="images",
            source="photos/flickr8k/images",
            inputs=8111,
            embedded=7604,
            reused=487,
            rejected=20,
            rejected_by_reason={"truncated": 11, "not_an_image": 6, "too_many_pixels": 3},
        ),
        training={
            "history": _history(20),
            "settings": {"epochs": 20, "batch_size": 500, "image_tower": "pypi:efficientnet-lite0", "mixup": 0.4},
        },
        tradeoff=_tradeoff(),
        live=live,
        files={
            "text_searcher.tflite": {
                "bytes": 23_902_922,
                "sha256": "75d59ba75476ffa99d2eac0c22cb4f5ffa2dd928d9948cc17c13edd7be943d5d",
            },
            "image_searcher.tflite": {
                "bytes": 12_291_538,
                "sha256": "cf7d94717164f039382d700d4e4ff1745e7f0be99f397bcb317826180a3adcfd",
            },
        },
        parameters=_tradeoff()["chosen"],
        config={"queries": 500, "min_recall_at_10": 0.9, "min_r_at_10": None, "max_latency_p99_ms": 12.0, "seed": 0},
        provenance={"encoder": "cf5b43982f331fae", "embeddings": "ad692abf3b879b01", "searcher": "2da5a35f324a316c"},
        build={
            "created": "2026-11-24T15:58:02.100000+00:00",
            "seconds": {"tune": 6.4, "encode": 21.1, "total": 48.2},
            "config": {"preset": "best", "recall_at_10": 0.95, "max_latency_ms": 2.0, "queries": 6000},
        },
        versions={"python": "3.11.9", "numpy": "2.1.3", "scann": "1.4.0", "tflite-support": "0.4.4"},
        seconds={"open": 0.4, "structure": 1.9, "queries": 21.4, "hostile": 3.2, "live": 14.0, "total": 41.3},
    )


def _figures() -> dict[str, Any]:
    return {
        "images": 8091,
        "gallery": 8091,
        "query_kind": "text",
        "queries": 500,
        "queries_seen_by_tuner": 75,
        "images_sampled": 50,
        "images_readable": 50,
        "recall_at_1": 0.961,
        "recall_at_10": 0.9534,
        "recall_at_100": 0.9127,
        "r_at_1": 0.3862,
        "exact_r_at_1": 0.389,
        "r_at_5": 0.6614,
        "exact_r_at_5": 0.6631,
        "r_at_10": 0.7718,
        "exact_r_at_10": 0.7754,
        "median_rank": 4.0,
        "own_or_equal_at_10": 0.7719,
        "latency_p50_ms": 4.731,
        "latency_p95_ms": 6.208,
        "latency_p99_ms": 8.416,
        "encoding_p50_ms": 4.31,
        "threads": 2,
        "threads_p50_ms": 3.082,
        "load_seconds": 0.0468,
        "memory_bytes": 61_345_792,
        "image_recall_at_1": 0.9933,
        "image_recall_at_10": 0.9621,
        "image_recall_at_100": 0.931,
        "image_own_or_equal_at_10": 1.0,
        "image_latency_p50_ms": 10.68,
        "image_latency_p95_ms": 13.9,
        "image_latency_p99_ms": 21.0,
        "image_encoding_p50_ms": 10.14,
        "image_threads_p50_ms": 6.91,
        "image_load_seconds": 0.081,
        "image_memory_bytes": 48_201_728,
        "code_error": 0.0213,
        "embedded_again_cosine": 0.99987,
        "index_bytes": 953_758,
        "bytes_per_image": 87.879,
        "searcher_bytes": 23_902_922,
    }


def _structural() -> list[Gate]:
    found = {
        "files": "both searchers are the files that the build committed",
        "opens": "both searchers open in the Task Library",
        "model": "the encoder's model, byte for byte",
        "metadata": "inputs, outputs and preprocessing are the encoder's",
        "index": "one index, the same in both searchers",
        "fingerprint": f"one encoder throughout: {FINGERPRINT[:16]}",
        "items": "exactly the manifest's 8,091 items",
        "item_metadata": "every item's metadata is the manifest's",
        "codes": "every code is the quantizer's for its item",
        "partitions": "90 partitions, none of them empty",
        "encoders": "query and corpus encoders agree: cosine 0.9998 or more",
        "embeddings": "8,091 finite vectors of length 1",
        "answers": "every query was answered",
        "hostile_queries": "14 hostile queries are answered, or refused with a reason",
        "known_ids": "every hit is an item of the manifest",
    }
    gates = [no_faults(name, [], detail) for name, detail in found.items()]
    return [*gates, at_least("images_find_themselves", 1.0, 0.8)]


def _measured(figures: dict[str, Any]) -> list[Gate]:
    low = {"recall_at_10": 0.9, "image_recall_at_10": 0.9, "r_at_10": 0.7}
    high = {"latency_p99_ms": 12.0, "bytes_per_image": 100.0, "searcher_bytes": 30_000_000}
    return [
        *(at_least(name, figures[name], limit) for name, limit in low.items() if name in figures),
        *(at_most(name, figures[name], limit) for name, limit in high.items() if name in figures),
    ]


def _live(figures: dict[str, Any]) -> LiveComparison:
    live = {
        "recall_at_10": 0.9391,
        "r_at_1": 0.3711,
        "r_at_10": 0.7718,
        "median_rank": 5.0,
        "latency_p50_ms": 4.902,
        "latency_p99_ms": 8.106,
        "bytes_per_image": 104.6,
        "searcher_bytes": 24_100_000,
        "memory_bytes": None,
    }
    return LiveComparison(
        release="116f3ae15f564fce",
        created="2026-10-02T08:00:12+00:00",
        queries=200,
        shared_queries=188,
        overlap_at_10=0.8645,
        figures=tuple(FigurePair(name=name, candidate=figures[name], live=value) for name, value in live.items()),
        note="The memory of the live release was not measured when it was checked.",
    )


def _histogram(centre: float, seed: int) -> Histogram:
    generator = random.Random(seed)
    width, count = centre / 25, 60
    counts = [0] * count
    for _ in range(500):
        value = centre * math.exp(generator.gauss(0, 0.09)) * (1.7 if generator.random() < 0.02 else 1.0)
        counts[min(count - 1, int(value / width))] += 1
    return Histogram(edges=tuple(round(width * edge, 6) for edge in range(count + 1)), counts=tuple(counts))


def _history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "loss": 2.1 + 4.6 * math.exp(-epoch / 4),
            "learning_rate": 0.002 * math.cos(epoch / epochs * math.pi / 2),
            "temperature": 0.05 - 0.0006 * epoch,
            "heldout_r_at_10": 0.73 - 0.4 * math.exp(-epoch / 3),
        }
        for epoch in range(1, epochs + 1)
    ]


def _tradeoff() -> dict[str, Any]:
    """Returns points whose recall and latency increase with searched partitions and code bytes."""
    points = []
    for code_bytes in (16, 32, 64, 96):
        for partitions in (45, 90, 180):
            for searched in (1, 2, 4, 8, 14, 24, 40):
                of_codes = min(1.0, 0.7 + 0.09 * math.log2(code_bytes / 8))
                points.append(
                    {
                        "code_bytes": code_bytes,
                        "partitions": partitions,
                        "partitions_searched": searched,
                        "lut_type": "float",
                        "recall_at_10": round(of_codes * (1 - math.exp(-9 * searched / partitions)), 4),
                        "bytes_per_image": code_bytes + 23.9,
                        "search_ms": round(0.02 + partitions / 2500 + code_bytes * searched / partitions / 112, 4),
                    }
                )
    good = [point for point in points if point["code_bytes"] == 64 and point["recall_at_10"] >= 0.95]
    chosen = min(good, key=lambda point: point["search_ms"])
    setting = ("code_bytes", "partitions", "partitions_searched", "lut_type")
    return {"chosen": {name: chosen[name] for name in setting}, "points": points}


def _examples(items: Items, misses: int, count: int = 12) -> list[Example]:
    """Returns queries with fewer and fewer misses; every fifth is an image."""
    generator = random.Random(0)
    found = []
    for place in range(count):
        own, caption = items[place]
        others = [id for id, _ in generator.sample(list(items), 25) if id != own]
        exact = others[:9]
        exact.insert(generator.randrange(10), own)
        lost = max(0, misses - place // 2)
        dropped = generator.sample(exact, lost)
        hits = [id for id in exact if id not in dropped] + others[9 : 9 + lost]
        if lost:
            hits[3], hits[-1] = hits[-1], hits[3]
        found.append(example(own, own, hits, exact, "image") if place % 5 == 4 else example(own, caption, hits, exact))
    return found


def _scene(index: int) -> Any:
    generator = random.Random(index)
    return random_scene(generator), generator


_HOSTILE: tuple[tuple[str, Any, str], ...] = (
    ("empty", "refused", "the query is empty"),
    ("100,000 characters", "answered", "10 hits"),
    ("null character", "answered", "10 hits"),
    ("invalid UTF-8", "refused", "the query is not UTF-8"),
    ("emoji and right-to-left marks", "answered", "10 hits"),
    ("only spaces", "answered", "10 hits"),
    ("special tokens of the vocabulary", "answered", "10 hits"),
)
