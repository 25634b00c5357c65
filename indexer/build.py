"""Builds a searcher: indexes an embedding run and packs the index into the bundle's encoders."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.corpus.queries import QUERY_KINDS, QueryTexts, choose_texts, embed_texts
from indexer.corpus.shards import require_images
from indexer.device import worker
from indexer.device.index_writer import write_index
from indexer.device.partitioned import write_partitioned
from indexer.encoding.local_run import delete_unused
from indexer.encoding.reuse import QUANTIZER, find_reusable_build
from indexer.identity import FORMAT_VERSION, NON_TRAINING_KEYS, training_config
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_map import inverse_transpose
from indexer.stopwatch import Stopwatch
from indexer.train_or_reuse import CorpusEncoder, IndexContent
from indexer.tuning.parameters import IndexParameters, require_valid_settings
from indexer.tuning.tradeoff import write_tradeoff
from searchforge.artifacts.encoder import TFLITE_FILES, EncoderInfo
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.searcher import IMAGE_SEARCHER, INDEX, SEARCHERS, TEXT_SEARCHER
from searchforge.artifacts.workspace import Workspace
from searchforge.captions.query_texts import uses_texts
from searchforge.config import Config, IndexConfig
from searchforge.errors import JobError
from searchforge.hashing import content_id, sha256_file
from searchforge.processes import isolated

logger = logging.getLogger(__name__)


def build_index(config: Config, embeddings: str, encoder: str | None = None) -> dict[str, Any]:
    """Indexes an embedding run and commits `searchers/<id>`, or returns the report of an existing one.

    Args:
      config: Workspace and index settings.
      embeddings: Id of the embedding run.
      encoder: Id of the encoder bundle that embeds queries; by default the one that made the embeddings.

    Returns:
      The content of build.json, described in docs/indexing.md.

    Raises:
      UsageError: The embeddings come from another encoder, are invalid, or do not suit the settings.
      JobError: No parameters reach the recall within the limits, a file is damaged, or ScaNN failed.
    """
    workspace = Workspace(config.workspace)
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", encoder or manifest.encoder))
    manifest.require_fingerprint(bundle.fingerprint, of=bundle.id)
    require_images(manifest)
    require_valid_settings(config.index, manifest.records, manifest.dim)
    texts = _choose_texts(config, workspace, manifest, bundle)
    id = _searcher_id(config, manifest, bundle, texts)
    if workspace.committed("searchers", id):
        logger.info(f"searcher {id} already exists: same embeddings, encoder, settings and queries")
        return workspace.marker("searchers", id)
    encoders = _verified_encoders(workspace.local("encoders", bundle.id), bundle)
    logger.info(
        f"indexing {manifest.records:,} {manifest.modality} of embeddings {manifest.id}; a full build takes about "
        f"{_estimated_seconds(manifest.records, texts):.0f} s on two cores"
    )
    stopwatch = Stopwatch()
    corpus = CorpusEncoder(config.index, workspace, manifest, texts, encoders.get(TEXT_SEARCHER), stopwatch)
    with workspace.create("searchers", id) as staging:
        scratch = staging.path / "scratch"
        scratch.mkdir()
        content = corpus.encode(find_reusable_build(workspace, manifest, bundle.id, config.index), scratch / "metadata")
        user_info = {
            "version": FORMAT_VERSION,
            "searcher": id,
            "embeddings": manifest.id,
            "encoder": bundle.id,
            "fingerprint": bundle.fingerprint,
            "preprocessing": bundle.preprocessing,
            "images": manifest.records,
            "dim": manifest.dim,
            "quantizer": content.quantizer.id,
            "parameters": content.parameters.to_json(),
        }
        sizes = _write(content, config.index, user_info, encoders, staging.path, workspace.cache("folded"), stopwatch)
        shutil.rmtree(scratch)
        index_bytes = sizes["codes"] + sizes["centroids_and_codebooks"] + sizes["user_info"]
        report: dict[str, Any] = {
            **user_info,
            "id": id,
            "config": training_config(config.index),
            "training": content.training,
            "sizes": sizes,
            "bytes_per_image": index_bytes / manifest.records,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
            "seconds": {**stopwatch.seconds, "total": sum(stopwatch.seconds.values())},
            "files": {path.name: sha256_file(path) for path in sorted(staging.path.iterdir()) if path.is_file()},
        }
        staging.commit(report)
    return report


def summary(report: dict[str, Any]) -> str:
    """Returns a one-line summary of a build."""
    measured = report["training"]["tuning"].get("recall_at_10")
    recall = ""
    if measured:
        kind = QUERY_KINDS[report["training"]["tuning"]["query_kind"]]
        recall = f"recall@10 {measured['verification']['recall_at_10']:.3f} on {kind}, "
    sizes = {kind: report["sizes"].get(name) for kind, name in SEARCHERS.items()}
    searchers = ", ".join(f"{kind} searcher {size / 1e6:.1f} MB" for kind, size in sizes.items() if size)
    return (
        f"searchers/{report['id']}: {report['images']:,} items, {recall}"
        f"{IndexParameters(**report['parameters']).summary}, "
        f"{report['bytes_per_image']:.0f} bytes per item, "
        f"{searchers}; {report['seconds']['total']:.1f} s"
    )


def _choose_texts(config: Config, workspace: Workspace, manifest: Manifest, bundle: EncoderInfo) -> QueryTexts | None:
    """Returns the texts to tune with, or None if items of the corpus serve as queries."""
    others = uses_texts(config.data, bundle.kinds, manifest.modality)
    if "text" not in bundle.kinds:
        return None

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        encoder = _verified_encoders(workspace.local("encoders", bundle.id), bundle)[TEXT_SEARCHER]
        return embed_texts(encoder, texts, workspace.cache("queries"))

    return choose_texts(config, embed if others else None)


def _write(
    content: IndexContent,
    config: IndexConfig,
    user_info: dict[str, Any],
    encoders: dict[str, Path],
    target: Path,
    cache: Path,
    stopwatch: Stopwatch,
) -> dict[str, int]:
    """Writes the index, the quantizer, the trade-off and both searchers; returns the size of each part in bytes."""
    quantizer, parameters = content.quantizer, content.parameters
    with stopwatch.step("write_index"):
        if config.partition_by:
            sizes = write_partitioned(
                content.encoded, quantizer, parameters, config, user_info, target, len(os.sched_getaffinity(0))
            )
        else:
            sizes = write_index(
                content.encoded,
                quantizer.centroids,
                quantizer.codebooks,
                parameters.lut_type,
                parameters.search_fraction,
                config.compression,
                json.dumps(user_info, sort_keys=True),
                target / INDEX,
            )
    if config.max_index_size and sizes["index_file"] > config.max_index_size and not config.partition_by:
        raise JobError(
            f"the index has {sizes['index_file']:,} bytes (metadata before compression: {sizes['metadata']:,}), more "
            f"than index.max_index_size {config.max_index_size:,}; raise it or lower index.recall_at_10"
        )
    (target / QUANTIZER).write_bytes(quantizer.to_bytes())
    if content.tradeoff:
        write_tradeoff(content.tradeoff, parameters, target)
    with stopwatch.step("pack"), isolated.Session(worker.MODULE) as session:
        for searcher, encoder in encoders.items():
            folded = _folded_encoder(session, encoder, quantizer, cache, images=searcher == IMAGE_SEARCHER)
            packed = target / (encoder.name if config.partition_by else searcher)
            if config.partition_by:
                shutil.copyfile(folded, packed)
            else:
                paths = {"folded": folded, "index": target / INDEX, "searcher": packed}
                session.call({"step": "pack", **{name: str(path) for name, path in paths.items()}})
            sizes[encoder.name] = encoder.stat().st_size
            sizes[searcher] = packed.stat().st_size
    return sizes


def _folded_encoder(session: isolated.Session, encoder: Path, quantizer: Quantizer, cache: Path, images: bool) -> Path:
    """Returns the encoder with the query map folded in as its last layer; folded and verified once, then cached."""
    path = cache / f"{sha256_file(encoder)}-{quantizer.id}.tflite"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            maps = {"query_map": inverse_transpose(quantizer.transform), "transform": quantizer.transform}
            for name, matrix in maps.items():
                np.save(f"{scratch}/{name}.npy", matrix)
            files = {name: f"{scratch}/{name}.npy" for name in maps}
            request = {"step": "fold", "encoder": str(encoder), "folded": f"{scratch}/folded", "images": images}
            session.call({**request, **files})
            Path(scratch, "folded").rename(path)
    delete_unused(path)
    return path


def _estimated_seconds(items: int, texts: QueryTexts | None) -> float:
    """Returns the seconds of a build, fitted to builds of 1,000 to 10,000,000 items."""
    queries = len(texts.training) + len(texts.tuning) + len(texts.verification) if texts else 0
    return 6 + 50e-6 * items + 2.7e-3 * queries


def _searcher_id(config: Config, manifest: Manifest, bundle: EncoderInfo, texts: QueryTexts | None) -> str:
    return content_id(
        {
            "version": FORMAT_VERSION,
            "embeddings": manifest.id,
            "shards": [[shard.sha256, shard.dead] for shard in manifest.shards],
            "encoder": bundle.id,
            "fingerprint": bundle.fingerprint,
            "files": bundle.files,
            "config": config.index.changed(NON_TRAINING_KEYS),
            "reuse": config.index.changed(IndexConfig.model_fields.keys() - {"reuse_from", "max_drift"}),
            "captions": texts.id if texts else None,
        }
    )


def _verified_encoders(directory: Path, bundle: EncoderInfo) -> dict[str, Path]:
    """Returns the encoder's TFLite file for each searcher, after comparing hashes with encoder.json."""
    encoders = {SEARCHERS[kind]: directory / TFLITE_FILES[kind] for kind in bundle.kinds}
    for path in encoders.values():
        if not path.is_file():
            raise JobError(f"encoder {bundle.id} has no {path.name}; delete {directory} and train or import it again")
        if (found := sha256_file(path)) != (listed := bundle.files[path.name]):
            raise JobError(
                f"{path} has SHA-256 {found}, but encoder.json lists {listed}; delete {directory} and train or "
                "import it again"
            )
    return encoders
