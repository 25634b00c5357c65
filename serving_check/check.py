"""Checks a searcher: verifies and measures the files that would be released, and commits the report."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from searchforge.artifacts.encoder import TEXT_TFLITE, EncoderInfo, InputKind
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.searcher import SEARCHERS
from searchforge.artifacts.workspace import Workspace
from searchforge.captions.query_texts import uses_texts
from searchforge.config import CheckConfig, Config
from searchforge.errors import UsageError
from searchforge.hashing import content_id, sha256_file
from serving_check.gate import Gate, at_least, at_most
from serving_check.gates.live_comparison import LiveRelease, compare_with_live, live_gates
from serving_check.inspection import CheckedArtifacts, Inspection
from serving_check.measurement.corpus import Corpus, load_corpus
from serving_check.measurement.queries import (
    PROBE_TEXTS,
    Queries,
    caption_queries,
    held_out,
    image_queries,
    other_texts,
    probe_images,
    text_queries,
    unrelated_queries,
)
from serving_check.report.html import render
from serving_check.schema import REPORT_VERSION, CorpusCounts, LiveComparison, Report

logger = logging.getLogger(__name__)

PAGE = "report.html"

_TRADEOFF = "tradeoff.json"
_VERSIONS = ("numpy", "tflite-support", "searchforge")


def check(
    config: Config, searcher: str, live: LiveRelease | None = None, allow_removal: bool = False
) -> dict[str, Any]:
    """Checks `searchers/<searcher>` and commits `checks/<id>`, whether it passed or failed.

    The report of an earlier check of the same files, queries and gates is returned if that check passed and no other
    release has gone live since. A failed check is repeated.

    Args:
      live: Release that the searcher would replace.
      allow_removal: Whether it may have fewer items than `check.max_items_drop` allows.

    Returns:
      Contents of report.json; see serving_check.schema.

    Raises:
      UsageError: The workspace lacks the searcher, its embeddings or its encoder.
    """
    seconds: dict[str, float] = {}
    workspace = Workspace(config.workspace)
    build = workspace.marker("searchers", searcher)
    if build.get("config", {}).get("partition_by"):
        raise UsageError(
            f"searcher {searcher} has a separate index for each {build['config']['partition_by']}; only a searcher "
            "with a single index can be checked and published: build it without index.partition_by"
        )
    manifest = Manifest.model_validate(workspace.marker("embeddings", build["embeddings"]))
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", build["encoder"]))
    folder = workspace.local("searchers", searcher)
    files: dict[str, dict[str, Any]] = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for name in (SEARCHERS[kind] for kind in bundle.kinds)
        if (path := folder / name).is_file()
    }
    live = live if live and live.searcher != searcher else None
    encoders = workspace.local("encoders", bundle.id)
    captioned = held_out(config, build.get("config", {}).get("seed", config.index.seed))
    wanted, seed = config.check.queries, config.check.seed
    uncaptioned = Queries([], [], [])
    if uses_texts(config.data, bundle.kinds, manifest.modality):
        source = other_texts(config, encoders / TEXT_TFLITE)
        if source:
            uncaptioned = unrelated_queries(list(source.sample("check", wanted, seed)), source.source)
    content = {
        "version": REPORT_VERSION,
        "searcher": searcher,
        "files": files,
        "check": config.check.changed(),
        "captions": captioned.content(),
        **({"texts": uncaptioned.values} if len(uncaptioned) else {}),
    }
    id, passed_before = _choose_id(workspace, content, live)
    if passed_before:
        logger.info(f"check {id} of the same files, queries and gates has already passed")
        return workspace.marker("checks", id)
    with _timed(seconds, "corpus"):
        corpus = load_corpus(workspace, manifest, captioned.uris)
        if corpus.texts:
            texts = text_queries(corpus, wanted, seed)
        else:
            texts = uncaptioned if len(uncaptioned) else caption_queries(captioned, corpus, wanted, seed)
    logger.info(
        f"checking searcher {searcher} of {len(corpus.ids):,} {manifest.modality} with {len(texts)} text queries; "
        f"about {15 + 0.04 * (len(texts) or wanted) + 5e-5 * len(corpus.ids):.0f} s"
    )
    artifacts = CheckedArtifacts(folder, encoders, build, manifest, bundle, corpus, config.check)
    with tempfile.TemporaryDirectory(prefix="searchforge-check-") as scratch, workspace.create("checks", id) as staging:
        inspection, comparison, gates = _inspect(artifacts, texts, live, Path(scratch), seconds, allow_removal)
        report = Report(
            id=id,
            searcher=searcher,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            passed=all(gate.passed for gate in gates),
            fingerprint=manifest.fingerprint,
            gates=tuple(gates),
            figures=inspection.figures,
            intervals=inspection.intervals,
            latency=inspection.latency,
            sizes=inspection.sizes,
            hostile=tuple(inspection.hostile),
            examples=tuple(inspection.examples),
            corpus=_counts(manifest),
            training={key: bundle.report[key] for key in ("history", "settings") if key in bundle.report},
            tradeoff=json.loads((folder / _TRADEOFF).read_text()) if (folder / _TRADEOFF).is_file() else None,
            live=comparison,
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
        content = json.loads(report.model_dump_json())  # NaN and infinity become null
        staging.commit(content)
    return content


def _inspect(
    artifacts: CheckedArtifacts,
    texts: Queries,
    live: LiveRelease | None,
    scratch: Path,
    seconds: dict[str, float],
    allow_removal: bool,
) -> tuple[Inspection, LiveComparison | None, list[Gate]]:
    """Returns the inspection, the comparison with the live release and all gates; adds the seconds of each step."""
    config, corpus = artifacts.config, artifacts.corpus
    with _timed(seconds, "files"):
        inspection = Inspection(artifacts, scratch)
        inspection.inspect_files()
    kinds, images, sampled = artifacts.bundle.kinds, Queries([], [], []), 0
    probes: dict[InputKind, list[str]] = {"text": PROBE_TEXTS}
    if "text" in kinds:
        with _timed(seconds, "text_searcher"):
            inspection.inspect_searcher("text", texts, probes["text"])
    if "image" in kinds:
        with _timed(seconds, "image_searcher"):
            probes["image"] = probe_images(scratch)
            if not corpus.texts:
                # Recall is measured with images if there are no texts.
                count = config.images if len(texts) else max(config.images, config.queries)
                images, sampled = image_queries(corpus, count, config.seed, scratch)
            inspection.inspect_searcher("image", images, probes["image"])
    inspection.finish(sampled)
    comparison = None
    if live:
        with _timed(seconds, "live_release"):
            known: dict[InputKind, Queries] = {"text": texts, "image": images}
            queries = {kind: known[kind] if len(known[kind]) else unrelated_queries(probes[kind]) for kind in kinds}
            comparison = compare_with_live(live, artifacts.folder, queries, corpus, inspection.figures)
    gates = inspection.gates() + _configured_gates(config, inspection.figures)
    if comparison:
        gates += live_gates(comparison, config, artifacts.manifest.rejected_by_reason, allow_removal)
    return inspection, comparison, gates


def _choose_id(workspace: Workspace, content: dict[str, Any], live: LiveRelease | None) -> tuple[str, bool]:
    """Returns the id of an earlier check that need not be repeated and True, or an unused id and False.

    A check that passed need not be repeated if no release is live or it compared the searcher with the same one.
    """
    attempt = 0
    while True:
        id = content_id({**content, "attempt": attempt})
        if not workspace.committed("checks", id):
            return id, False
        report = workspace.marker("checks", id)
        compared_with = (report.get("live") or {}).get("release")
        if report["passed"] and (live is None or compared_with == live.id):
            return id, True
        attempt += 1


def _configured_gates(config: CheckConfig, figures: dict[str, Any]) -> list[Gate]:
    """Returns the gates that the configuration sets limits for."""
    gates = []
    for name, low in (
        ("recall_at_1", config.min_recall_at_1),
        ("recall_at_10", config.min_recall_at_10),
        ("recall_at_100", config.min_recall_at_100),
        ("r_at_10", config.min_r_at_10),
    ):
        if low is not None:
            gates.append(at_least(name, figures.get(name), low, _reason_unmeasured(name, figures)))
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


def _reason_unmeasured(name: str, figures: dict[str, Any]) -> str:
    if not figures["queries"]:
        return "not measured: there are no held-out captions, and none of the corpus' images can be read"
    if name == "r_at_10":
        return "not measured: there are no held-out captions of the corpus' images"
    return "not measured: the searcher did not answer"


def _counts(manifest: Manifest) -> CorpusCounts:
    return CorpusCounts(**{name: getattr(manifest, name) for name in CorpusCounts.model_fields})


def _pictures(corpus: Corpus) -> Callable[[str], bytes | None]:
    return lambda id: corpus.read(corpus.row_of[id]) if id in corpus.row_of and not corpus.texts else None


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 2)
