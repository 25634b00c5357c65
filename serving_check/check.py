"""Checks a searcher: opens the very bytes that would ship, measures them, and writes report.json with its gates."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from searchforge.config import CheckConfig, Config
from searchforge.encoder import IMAGE_TFLITE, TEXT_TFLITE, EncoderInfo
from searchforge.errors import UsageError
from searchforge.hashing import content_id, sha256_file
from searchforge.manifest import Manifest
from searchforge.progress import say
from searchforge.searcher import IMAGE_SEARCHER, TEXT_SEARCHER
from searchforge.workspace import Workspace
from serving_check.corpus import Queries, corpus_images, corpus_texts, heldout_captions, load_corpus
from serving_check.examination import Examination
from serving_check.gates import Gate, at_least, at_most

REPORT_VERSION = 1
"""Of report.json; documented in docs/."""

SEARCHERS: dict[Literal["text", "image"], str] = {"text": TEXT_SEARCHER, "image": IMAGE_SEARCHER}

MIN_CAPTIONS = 200
"""Held-out captions that are enough to measure recall; with fewer, images of the corpus measure it as well."""

IMAGE_QUERIES = 50
"""Images asked of the image searcher where captions measure recall; with fewer captions, as many as `check.queries`."""


def check(config: Config, searcher: str) -> dict[str, Any]:
    """Checks `searchers/<searcher>` and commits `checks/<id>`, whether it passed or not.

    A passed check of the same bytes, queries and gates is returned as it is; a failed one is repeated.

    Returns:
      The content of report.json: `passed`, `gates`, `figures`, `files` with size and SHA-256, provenance.

    Raises:
      UsageError: there is no such searcher, or its embeddings or encoder are not in the workspace.
    """
    start = time.perf_counter()
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
        for name in SEARCHERS.values()
        if (path := folder / name).is_file()
    }
    corpus = load_corpus(workspace, manifest)
    of_texts = manifest.modality == "texts"
    captions = corpus_texts(corpus, config) if of_texts else heldout_captions(config, corpus)
    content = {
        "version": REPORT_VERSION,
        "searcher": searcher,
        "files": files,
        "check": config.check.model_dump(),
        "queries": [captions.values, captions.targets],
    }
    id, passed_before = _free_id(workspace, content)
    if passed_before:
        say(f"check {id} is there already, and passed: same bytes, queries and gates")
        return workspace.marker("checks", id)
    kind = "of its texts" if of_texts else "held-out captions"
    asked = f"{len(captions)} {kind}" if len(captions) else "its images, as it has no held-out captions,"
    say(
        f"check searcher {searcher} of {len(corpus.ids):,} {manifest.modality} with {asked} through the Task Library; "
        f"about {5 + 0.02 * (len(captions) or config.check.queries):.0f} s"
    )
    with tempfile.TemporaryDirectory(prefix="searchforge-check-") as scratch:
        wanted = IMAGE_QUERIES if len(captions) >= MIN_CAPTIONS else config.check.queries
        images = Queries([], []) if of_texts else corpus_images(corpus, wanted, config.check.seed, Path(scratch))
        examination = Examination(corpus, manifest, bundle)
        encoders = workspace.local("encoders", bundle.id)
        examination.examine("text", folder / SEARCHERS["text"], encoders / TEXT_TFLITE, captions)
        examination.examine("image", folder / SEARCHERS["image"], encoders / IMAGE_TFLITE, images)
    figures = examination.figures()
    figures["searcher_bytes"] = max((file["bytes"] for file in files.values()), default=None)
    gates = examination.gates() + _configured(config.check, figures)
    report = {
        "version": REPORT_VERSION,
        "id": id,
        "searcher": searcher,
        "passed": all(gate.passed for gate in gates),
        "fingerprint": manifest.fingerprint,
        "gates": [dataclasses.asdict(gate) for gate in gates],
        "figures": figures,
        "files": files,
        "parameters": build["parameters"],
        "config": config.check.model_dump(),
        "provenance": {"encoder": bundle.id, "embeddings": manifest.id, "searcher": searcher},
        "seconds": time.perf_counter() - start,
    }
    with workspace.create("checks", id) as staging:
        staging.commit(report)
    return report


def summary(report: dict[str, Any]) -> str:
    """Returns the verdict, every gate and the main figures, for people."""
    lines = [f"checks/{report['id']}: {'passed' if report['passed'] else 'FAILED'}"]
    for gate in report["gates"]:
        lines.append(f"  {'ok    ' if gate['passed'] else 'FAILED'} {gate['name']}: {gate['detail']}")
    return "\n".join(lines)


def _free_id(workspace: Workspace, content: dict[str, Any]) -> tuple[str, bool]:
    """Returns the id of a check and whether it passed before; a failed one keeps its report, the repeat gets an id."""
    attempt = 0
    while True:
        id = content_id({**content, "attempt": attempt})
        if not workspace.committed("checks", id):
            return id, False
        if workspace.marker("checks", id)["passed"]:
            return id, True
        attempt += 1


def _configured(config: CheckConfig, figures: dict[str, Any]) -> list[Gate]:
    """Returns the gates that the configuration asks for."""
    gates = []
    for name, low in (("recall_at_10", config.min_recall_at_10), ("r_at_10", config.min_r_at_10)):
        if low is not None:
            gates.append(at_least(name, figures.get(name), low, _why_unmeasured(name, figures)))
    if config.min_recall_at_10 is not None and figures.get("image_recall_at_10") is not None:
        gates.append(at_least("image_recall_at_10", figures["image_recall_at_10"], config.min_recall_at_10))
    for name, high in (
        ("latency_p50_ms", config.max_latency_p50_ms),
        ("latency_p99_ms", config.max_latency_p99_ms),
        ("bytes_per_image", config.max_bytes_per_image),
        ("searcher_bytes", config.max_searcher_bytes),
    ):
        if high is not None:
            gates.append(at_most(name, figures.get(name), high))
    return gates


def _why_unmeasured(name: str, figures: dict[str, Any]) -> str:
    if not figures["queries"]:
        return "not measured: there are no held-out captions of the corpus' images, and none of the images can be read"
    if name == "r_at_10" and figures["query_kind"] == "image":
        return "not measured: there are no held-out captions of the corpus' images"
    return "not measured: the searcher did not answer"
