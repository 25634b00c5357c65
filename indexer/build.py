"""Builds a searcher: one index of an embedding run, packed into the text and into the image encoder."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from indexer import worker
from indexer.base import QUANTIZER, Base, find_base, training_config
from indexer.corpus import Shard, open_corpus, require_images
from indexer.curve import write_curve
from indexer.drift import drift, share_changed, statistics
from indexer.encoding import encode_corpus
from indexer.ondevice_index import write_index
from indexer.parameters import Setting, require_possible
from indexer.partitioned import write_partitioned
from indexer.parts import Merged
from indexer.quantizer import Quantizer
from indexer.queries import QueryTexts, choose_texts, embed_queries
from indexer.query_map import inverse_transpose
from indexer.recall import measure, settle
from indexer.recipe import recipe_quantizer
from indexer.training import Training
from searchforge import isolated
from searchforge.config import Config
from searchforge.encoder import IMAGE_TFLITE, TEXT_TFLITE, EncoderInfo
from searchforge.errors import JobError
from searchforge.hashing import content_id, sha256_file
from searchforge.manifest import Manifest
from searchforge.progress import say
from searchforge.searcher import IMAGE_SEARCHER, INDEX, TEXT_SEARCHER
from searchforge.workspace import Workspace

FORMAT_VERSION = 2
"""Of build.json and USER_INFO; also part of a searcher's id, so a build that packs differently gets another id."""

_ATTEMPTS = 3
"""Sizes of code that are built until the whole index has the recall that the tuner expected."""


@dataclass(frozen=True)
class Encoded:
    """An encoded corpus and how it came about.

    Attributes:
      training: for build.json: what the quantizer was trained on, its statistics, what the tuner measured.
      curve: points of the trade-off curve, as JSON; empty where nothing was tuned.
    """

    quantizer: Quantizer
    setting: Setting
    merged: Merged
    training: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)


def build_index(config: Config, embeddings: str, encoder: str | None = None) -> dict[str, Any]:
    """Indexes an embedding run and commits `searchers/<id>`; a searcher that is there already is returned as it is.

    Args:
      config: names the workspace, and what the index must reach.
      embeddings: id of the embedding run.
      encoder: id of the encoder bundle that answers queries; by default the one that made the embeddings.

    Returns:
      The content of build.json, see docs/indexing.md.

    Raises:
      UsageError: the embeddings are another encoder's, are faulty, or do not suit the settings.
      JobError: no setting reaches the recall within the limits, a file is damaged, or ScaNN failed.
    """
    workspace = Workspace(config.workspace)
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", encoder or manifest.encoder))
    manifest.require_fingerprint(bundle.fingerprint, of=bundle.id)
    require_images(manifest)
    require_possible(config.index, manifest.records, manifest.dim)
    texts = choose_texts(config)
    id = _searcher_id(config, manifest, bundle, texts)
    if workspace.committed("searchers", id):
        say(f"searcher {id} is there already: same embeddings, encoder, settings and captions")
        return workspace.marker("searchers", id)
    encoders = _verified_encoders(workspace.local("encoders", bundle.id), bundle)
    build = _Build(config, workspace, manifest, texts, encoders[TEXT_SEARCHER])
    with workspace.create("searchers", id) as staging:
        scratch = staging.path / "scratch"
        scratch.mkdir()
        encoded = build.encode(find_base(workspace, manifest, bundle.id, config.index), scratch / "metadata")
        user_info = {
            "version": FORMAT_VERSION,
            "searcher": id,
            "embeddings": manifest.id,
            "encoder": bundle.id,
            "fingerprint": bundle.fingerprint,
            "preprocessing": bundle.preprocessing,
            "images": manifest.records,
            "dim": manifest.dim,
            "quantizer": encoded.quantizer.id,
            "parameters": encoded.setting.to_json(),
        }
        sizes = build.write(encoded, user_info, encoders, staging.path)
        shutil.rmtree(scratch)
        index_bytes = sizes["codes"] + sizes["centroids_and_codebooks"] + sizes["user_info"]
        report: dict[str, Any] = {
            **user_info,
            "id": id,
            "config": training_config(config.index),
            "training": encoded.training,
            "sizes": sizes,
            "bytes_per_image": index_bytes / manifest.records,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
            "seconds": {**build.seconds, "total": sum(build.seconds.values())},
            "files": {path.name: sha256_file(path) for path in sorted(staging.path.iterdir()) if path.is_file()},
        }
        staging.commit(report)
    return report


def summary(report: dict[str, Any]) -> str:
    """Returns what a build gave, in one line for people."""
    recall = report["training"].get("recall_at_10")
    reached = f"recall@10 {recall['verification']:.3f}, " if recall else ""
    return (
        f"searchers/{report['id']}: {report['images']:,} images, {reached}{Setting(**report['parameters']).summary}, "
        f"{report['bytes_per_image']:.0f} bytes an image, "
        f"text searcher {report['sizes'][TEXT_SEARCHER] / 1e6:.1f} MB; {report['seconds']['total']:.1f} s"
    )


class _Build:
    """The steps of one build, timed."""

    def __init__(
        self, config: Config, workspace: Workspace, manifest: Manifest, texts: QueryTexts | None, text_encoder: Path
    ) -> None:
        self._config, self._workspace, self._manifest = config, workspace, manifest
        self._texts, self._text_encoder = texts, text_encoder
        self._threads = len(os.sched_getaffinity(0))
        self.seconds: dict[str, float] = {}

    def encode(self, base: Base | None, metadata_file: Path) -> Encoded:
        """Encodes the corpus, with the base's quantizer unless the corpus has drifted away from it."""
        with self._timed("open"):
            shards = open_corpus(self._workspace, self._manifest)
        if base:
            encoded = self._encode_on(base, shards, metadata_file)
            if encoded:
                return encoded
        if self._config.index.preset == "recipe2022":
            return self._encode_recipe(shards, metadata_file)
        return self._encode_tuned(shards, metadata_file)

    def _encode_on(self, base: Base, shards: list[Shard], metadata_file: Path) -> Encoded | None:
        merged = self._encode(base.quantizer, shards, metadata_file)
        moved = drift(base.trained, statistics(merged), share_changed(base.trained_on, self._manifest))
        if moved["drift"] > self._config.index.max_drift:
            say(f"the corpus has drifted by {moved['drift']:.3f} (index.max_drift {self._config.index.max_drift})")
            return None
        say(f"the quantizer of embeddings {base.trained_on.id} is used again: drift {moved['drift']:.3f}")
        training = {
            "embeddings": base.trained_on.id,
            "statistics": base.trained,
            "tuning": base.tuning,
            "drift": moved,
        }
        return Encoded(base.quantizer, base.setting, merged, training)

    def _encode_recipe(self, shards: list[Shard], metadata_file: Path) -> Encoded:
        with self._timed("train"):
            quantizer, setting = recipe_quantizer(
                shards,
                self._manifest.dim,
                self._manifest.records,
                self._config.index,
                self._threads,
                metadata_file.parent,
            )
        say(f"index {self._manifest.records:,} images as in 2022: {setting.summary}")
        merged = self._encode(quantizer, shards, metadata_file)
        return Encoded(quantizer, setting, merged, self._training(merged, {}))

    def _encode_tuned(self, shards: list[Shard], metadata_file: Path) -> Encoded:
        index, records = self._config.index, self._manifest.records
        queries = None
        if self._texts:
            with self._timed("embed_queries"):
                queries = embed_queries(self._text_encoder, self._texts, self._workspace.cache("queries"))
        with self._timed("survey"):
            training = Training(shards, self._manifest.dim, records, queries, index, self._threads)
        expected = index.recall_at_10
        for _ in range(_ATTEMPTS):
            with self._timed("tune"):
                point, quantizer = training.choose(expected)
            say(f"  expected: {point.summary}")
            merged = self._encode(quantizer, shards, metadata_file)
            with self._timed("verify"):
                setting, reached = settle(quantizer, merged, point.setting, training.tuning, index)
            if expected is None or index.recall_at_10 is None or reached >= index.recall_at_10:
                break
            expected += index.recall_at_10 - reached + 0.002
        else:
            raise JobError(
                f"the index reaches recall@10 of {reached:.3f} at {setting.summary}, expected {index.recall_at_10}; "
                "set index.recall_at_10 lower, or raise index.max_latency_ms"
            )
        with self._timed("verify"):
            recall = {
                name: measure(quantizer, merged, setting, questions)
                for name, questions in (("tuning", training.tuning), ("verification", training.verification))
            }
        tuning = {"query_kind": training.query_kind, "recall_at_10": recall}
        encoded = self._training(merged, tuning)
        return Encoded(quantizer, setting, merged, encoded, [point.to_json() for point in training.curve])

    def _training(self, merged: Merged, tuning: dict[str, Any]) -> dict[str, Any]:
        return {
            "embeddings": self._manifest.id,
            "statistics": statistics(merged),
            "tuning": tuning,
            "drift": None,
        }

    def _encode(self, quantizer: Quantizer, shards: list[Shard], metadata_file: Path) -> Merged:
        with self._timed("encode"):
            return encode_corpus(
                self._workspace, self._manifest, shards, quantizer, self._config.index, self._threads, metadata_file
            )

    def write(
        self, encoded: Encoded, user_info: dict[str, Any], encoders: dict[str, Path], target: Path
    ) -> dict[str, int]:
        """Writes the index, the quantizer, the curve and both searchers; returns the size of every part in bytes."""
        quantizer, setting, config = encoded.quantizer, encoded.setting, self._config.index
        with self._timed("write_index"):
            if config.partition_by:
                sizes = write_partitioned(encoded.merged, quantizer, setting, config, user_info, target, self._threads)
            else:
                sizes = write_index(
                    encoded.merged,
                    quantizer.centroids,
                    quantizer.codebooks,
                    setting.lookup,
                    setting.search_fraction,
                    config.compression,
                    json.dumps(user_info, sort_keys=True),
                    target / INDEX,
                )
        (target / QUANTIZER).write_bytes(quantizer.to_bytes())
        if encoded.curve:
            write_curve(encoded.curve, setting, target)
        maps = {"query_map": inverse_transpose(quantizer.transform), "transform": quantizer.transform}
        for name, matrix in maps.items():
            np.save(target / "scratch" / f"{name}.npy", matrix)
        with self._timed("pack"), isolated.Session(worker.MODULE) as session:
            for searcher, encoder in encoders.items():
                packed = target / (encoder.name if config.partition_by else searcher)
                request = {
                    "step": "pack",
                    "encoder": str(encoder),
                    "index": None if config.partition_by else str(target / INDEX),
                    "searcher": str(packed),
                    "images": searcher == IMAGE_SEARCHER,
                }
                session.call({**request, **{name: str(target / "scratch" / f"{name}.npy") for name in maps}})
                sizes[encoder.name] = encoder.stat().st_size
                sizes[searcher] = packed.stat().st_size
        return sizes

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def _searcher_id(config: Config, manifest: Manifest, bundle: EncoderInfo, texts: QueryTexts | None) -> str:
    return content_id(
        {
            "version": FORMAT_VERSION,
            "embeddings": manifest.id,
            "shards": [[shard.sha256, shard.dead] for shard in manifest.shards],
            "encoder": bundle.id,
            "fingerprint": bundle.fingerprint,
            "files": bundle.files,
            "config": training_config(config.index),
            "base": [config.index.base, config.index.max_drift],
            "captions": texts.id if texts else None,
        }
    )


def _verified_encoders(directory: Path, bundle: EncoderInfo) -> dict[str, Path]:
    """Returns the encoder's TFLite file for each searcher, each with the bytes that its bundle lists."""
    encoders = {TEXT_SEARCHER: directory / TEXT_TFLITE, IMAGE_SEARCHER: directory / IMAGE_TFLITE}
    for path in encoders.values():
        if not path.is_file():
            raise JobError(f"encoder {bundle.id} has no {path.name}; delete {directory} and train again")
        listed = bundle.files.get(path.name)
        if listed and (found := sha256_file(path)) != listed:
            raise JobError(
                f"{path} has SHA-256 {found}, encoder.json says {listed}; delete {directory} and train again"
            )
    return encoders
