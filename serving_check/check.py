"""Checks a searcher: opens the very bytes that would ship, verifies and measures them, and commits the report."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE, EncoderInfo
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.searcher import IMAGE_SEARCHER, TEXT_SEARCHER
from searchforge.artifacts.workspace import Workspace
from searchforge.config import CheckConfig, Config
from searchforge.errors import UsageError
from searchforge.hashing import content_id, sha256_file
from serving_check.gate import Gate, at_least, at_most
from serving_check.gates.live_comparison import LiveRelease, compare_live, live_gates
from serving_check.inspection import Examination, Kind, Subject
from serving_check.measurement.corpus import Corpus, load_corpus
from serving_check.measurement.queries import (
    PROBES,
    Queries,
    caption_queries,
    held_out,
    image_queries,
    probe_images,
    text_queries,
)
from serving_check.report.html import render
from serving_check.schema import REPORT_VERSION, CorpusCounts, LiveComparison, Report

logger = logging.getLogger(__name__)

PAGE = "report.html"

NAMES: dict[Kind, tuple[str, str]] = {
    "text": (TEXT_SEARCHER, TEXT_TFLITE),
    "image": (IMAGE_SEARCHER, IMAGE_TFLITE),
}
"""Files of the searcher and of the bundle."""

_TRADEOFF = "tradeoff.json"
_VERSIONS = ("numpy", "tflite-support", "searchforge")


def check(config: Config, searcher: str, live: LiveRelease | None = None) -> dict[str, Any]:
    """Checks `searchers/<searcher>` and commits `checks/<id>`, whether it passed or not.

    A passed check of the same bytes, queries and gates is returned as it is, unless another release went live since;
    a failed one is repeated.

    Args:
      live: the release that the searcher would replace.

    Returns:
      The content of report.json, see serving_check.schema.

    Raises:
      UsageError: there is no such searcher, or its embeddings or encoder are not in the workspace.
    """
    seconds: dict[str, float] = {}
    workspace = Workspace(config.workspace)
    build = workspace.marker("searchers", searcher)
    if build.get("config", {}).get("partition_by"):
        raise UsageError(
            f"searcher {searcher} is one index for each {build['config']['partition_by']}; check and publish take "
            "whole ones: build it without index.partition_by"
        )
    manifest = Manifest.model_validate(workspace.marker("embeddings", build["embeddings"]))
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", build["encoder"]))
    folder = workspace.local("searchers", searcher)
    files: dict[str, dict[str, Any]] = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for name, _ in NAMES.values()
        if (path := folder / name).is_file()
    }
    live = live if live and live.searcher != searcher else None
    captioned = held_out(config, build.get("config", {}).get("seed", config.index.seed))
    content = {
        "version": REPORT_VERSION,
        "searcher": searcher,
        "files": files,
        "check": config.check.changed(),
        "captions": captioned.content(),
    }
    id, passed_before = _free_id(workspace, content, live)
    if passed_before:
        logger.info(f"check {id} is there already, and passed: same bytes, queries and gates")
        return workspace.marker("checks", id)
    with _timed(seconds, "corpus"):
        corpus = load_corpus(workspace, manifest, captioned.uris)
        wanted, seed = config.check.queries, config.check.seed
        texts = text_queries(corpus, wanted, seed) if corpus.texts else caption_queries(captioned, corpus, wanted, seed)
    logger.info(
        f"check searcher {searcher} of {len(corpus.ids):,} {manifest.modality} through the Task Library, with "
        f"{len(texts)} texts; about {15 + 0.04 * (len(texts) or wanted) + 5e-5 * len(corpus.ids):.0f} s"
    )
    subject = Subject(folder, workspace.local("encoders", bundle.id), build, manifest, bundle, corpus, config.check)
    with tempfile.TemporaryDirectory(prefix="searchforge-check-") as scratch, workspace.create("checks", id) as staging:
        examination, compared, gates = _examine(subject, texts, live, Path(scratch), seconds)
        report = Report(
            id=id,
            searcher=searcher,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            passed=all(gate.passed for gate in gates),
            fingerprint=manifest.fingerprint,
            gates=tuple(gates),
            figures=examination.figures,
            intervals=examination.intervals,
            latency=examination.latency,
            sizes=examination.sizes,
            hostile=tuple(examination.hostile),
            examples=tuple(examination.examples),
            corpus=_counts(manifest),
            training={key: bundle.report[key] for key in ("history", "settings") if key in bundle.report},
            tradeoff=json.loads((folder / _TRADEOFF).read_text()) if (folder / _TRADEOFF).is_file() else None,
            live=compared,
            files=files,
            parameters=build["parameters"],
            config=config.check.model_dump(),
            provenance={"encoder": bundle.id, "embeddings": manifest.id, "searcher": searcher},
            build={key: build[key] for key in ("created", "seconds", "config") if key in build},
            versions={
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in _VERSIONS},
            },
            seconds={**seconds, "total": sum(seconds.values())},
        )
        (staging.path / PAGE).write_text(render(report, _pictures(corpus)), encoding="utf-8")
        content = json.loads(report.model_dump_json())  # in which null stands for what is no number
        staging.commit(content)
    return content


def _examine(
    subject: Subject, texts: Queries, live: LiveRelease | None, scratch: Path, seconds: dict[str, float]
) -> tuple[Examination, LiveComparison | None, list[Gate]]:
    config, corpus = subject.config, subject.corpus
    with _timed(seconds, "files"):
        examination = Examination(subject, scratch)
        examination.examine_files(NAMES)
    with _timed(seconds, "text_searcher"):
        examination.examine("text", *NAMES["text"], texts, PROBES)
    with _timed(seconds, "image_searcher"):
        # Enough captions measure recall; without them, images do.
        count = config.images if len(texts) else max(config.images, config.queries)
        images, sampled = (
            (Queries([], [], []), 0) if corpus.texts else image_queries(corpus, count, config.seed, scratch)
        )
        examination.examine("image", *NAMES["image"], images, probe_images(scratch))
    examination.finish(sampled)
    compared = None
    if live:
        with _timed(seconds, "live_release"):
            compared = compare_live(live, subject.folder, texts, corpus, examination.figures)
    gates = examination.gates() + _configured(config, examination.figures)
    return examination, compared, gates + (live_gates(compared, config) if compared else [])


def _free_id(workspace: Workspace, content: dict[str, Any], live: LiveRelease | None) -> tuple[str, bool]:
    """Returns the id of a check, and whether it passed before; a repeated one keeps the earlier report.

    A searcher that is live itself, or passed beside the release that is live still, need not be compared again.
    """
    attempt = 0
    while True:
        id = content_id({**content, "attempt": attempt})
        if not workspace.committed("checks", id):
            return id, False
        report = workspace.marker("checks", id)
        beside = (report.get("live") or {}).get("release")
        if report["passed"] and (live is None or beside == live.id):
            return id, True
        attempt += 1


def _configured(config: CheckConfig, figures: dict[str, Any]) -> list[Gate]:
    """Returns the gates that the configuration asks for."""
    gates = []
    for name, low in (
        ("recall_at_1", config.min_recall_at_1),
        ("recall_at_10", config.min_recall_at_10),
        ("recall_at_100", config.min_recall_at_100),
        ("r_at_10", config.min_r_at_10),
    ):
        if low is not None:
            gates.append(at_least(name, figures.get(name), low, _why_unmeasured(name, figures)))
    if config.min_recall_at_10 is not None and figures.get("image_recall_at_10") is not None:
        gates.append(at_least("image_recall_at_10", figures["image_recall_at_10"], config.min_recall_at_10))
    for name, high in (
        ("latency_p50_ms", config.max_latency_p50_ms),
        ("latency_p95_ms", config.max_latency_p95_ms),
        ("latency_p99_ms", config.max_latency_p99_ms),
        ("load_seconds", config.max_load_seconds),
        ("memory_bytes", config.max_memory_bytes),
        ("bytes_per_image", config.max_bytes_per_image),
        ("searcher_bytes", config.max_searcher_bytes),
    ):
        if high is not None:
            gates.append(at_most(name, figures.get(name), high))
    return gates


def _why_unmeasured(name: str, figures: dict[str, Any]) -> str:
    if not figures["queries"]:
        return "not measured: there are no held-out captions, and none of the corpus' images can be read"
    if name == "r_at_10":
        return "not measured: there are no held-out captions of the corpus' images"
    return "not measured: the searcher did not answer"


def _counts(manifest: Manifest) -> CorpusCounts:
    return CorpusCounts(**{name: getattr(manifest, name) for name in CorpusCounts.model_fields})


def _pictures(corpus: Corpus) -> Any:
    return lambda id: corpus.read(corpus.row_of[id]) if id in corpus.row_of and not corpus.texts else None


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 2)
