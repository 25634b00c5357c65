"""Builds a searcher: one index of an embedding run, packed into the text and into the image encoder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from indexer.parameters import IndexParameters, resolve
from indexer.vectors import Corpus, load_corpus, require_images
from searchforge import isolated
from searchforge.config import Config
from searchforge.encoder import IMAGE_TFLITE, TEXT_TFLITE, EncoderInfo
from searchforge.errors import JobError
from searchforge.hashing import content_id, sha256_file
from searchforge.manifest import Manifest
from searchforge.progress import say
from searchforge.searcher import IMAGE_SEARCHER, INDEX, TEXT_SEARCHER
from searchforge.workspace import Workspace

FORMAT_VERSION = 1
"""Of build.json and USER_INFO; also part of a searcher's id, so a build that packs differently gets another id."""

_WORKER = "indexer.worker"


def build_index(config: Config, embeddings: str, encoder: str | None = None) -> dict[str, Any]:
    """Indexes an embedding run and commits `searchers/<id>`; a searcher that is there already is returned as it is.

    Args:
      config: names the workspace and the parameters of the index.
      embeddings: id of the embedding run.
      encoder: id of the encoder bundle that answers queries; by default the one that made the embeddings.

    Returns:
      The content of build.json: ids, fingerprint, `images`, resolved `parameters`, `sizes` in bytes of every part,
      `bytes_per_image` (codes, centroids, codebooks and user info), `seconds` by step, SHA-256 of `files`.

    Raises:
      UsageError: the embeddings are another encoder's, are faulty, or do not suit the parameters.
      JobError: a file is damaged, or ScaNN or the index builder failed.
    """
    workspace = Workspace(config.workspace)
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", encoder or manifest.encoder))
    manifest.require_fingerprint(bundle.fingerprint, of=bundle.id)
    require_images(manifest)
    images = manifest.records
    parameters = resolve(config.index, images, manifest.dim)
    id = _searcher_id(manifest, bundle, parameters)
    if workspace.committed("searchers", id):
        say(f"searcher {id} is there already: same embeddings, encoder and parameters")
        return workspace.marker("searchers", id)
    say(
        f"index {images:,} images: {parameters.partitions} partitions, {parameters.partitions_searched} of them "
        f"searched, {_blocks(manifest.dim, parameters)} bytes a code; takes "
        f"about {_estimate(images, manifest.dim, parameters):.0f} s"
    )
    user_info: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "searcher": id,
        "embeddings": manifest.id,
        "encoder": bundle.id,
        "fingerprint": bundle.fingerprint,
        "preprocessing": bundle.preprocessing,
        "images": images,
        "dim": manifest.dim,
        "parameters": parameters.to_json(),
    }
    encoders = _verified_encoders(workspace.local("encoders", bundle.id), bundle)
    seconds: dict[str, float] = {}
    with workspace.create("searchers", id) as staging:
        with _timed(seconds, "load"):
            corpus = load_corpus(workspace, manifest)
        sizes = _build_files(corpus, parameters, user_info, encoders, staging.path, seconds)
        index_bytes = sizes["codes"] + sizes["centroids_and_codebooks"] + sizes["user_info"]
        report: dict[str, Any] = {
            **user_info,
            "id": id,
            "sizes": sizes,
            "bytes_per_image": index_bytes / images,
            "seconds": {**seconds, "total": sum(seconds.values())},
            "files": {path.name: sha256_file(path) for path in sorted(staging.path.iterdir())},
        }
        staging.commit(report)
    return report


def summary(report: dict[str, Any]) -> str:
    """Returns what a build gave, in one line for people."""
    return (
        f"searchers/{report['id']}: {report['images']} images, {report['bytes_per_image']:.0f} bytes an image, "
        f"text searcher {report['sizes'][TEXT_SEARCHER] / 1e6:.1f} MB; {report['seconds']['total']:.1f} s"
    )


def _searcher_id(manifest: Manifest, bundle: EncoderInfo, parameters: IndexParameters) -> str:
    return content_id(
        {
            "version": FORMAT_VERSION,
            "embeddings": manifest.id,
            "shards": [[shard.sha256, shard.dead] for shard in manifest.shards],
            "encoder": bundle.id,
            "fingerprint": bundle.fingerprint,
            "files": bundle.files,
            "parameters": parameters.to_json(),
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


def _build_files(
    corpus: Corpus,
    parameters: IndexParameters,
    user_info: dict[str, Any],
    encoders: dict[str, Path],
    target: Path,
    seconds: dict[str, float],
) -> dict[str, int]:
    """Writes the index and both searchers into `target`; returns the size of every part in bytes."""
    scratch = target / "scratch"
    scratch.mkdir()
    vectors, metadata, quantized = scratch / "vectors.npy", scratch / "metadata.jsonl", scratch / "quantized.npz"
    np.save(vectors, corpus.vectors)
    metadata.write_bytes(b"".join(line + b"\n" for line in corpus.device_metadata))
    common = {"parameters": parameters.to_json(), "quantized": str(quantized), "index": str(target / INDEX)}
    with isolated.Session(_WORKER) as worker:
        with _timed(seconds, "quantize"):
            worker.call({"step": "quantize", "vectors": str(vectors), **common})
        with _timed(seconds, "write_index"):
            sizes: dict[str, int] = worker.call(
                {
                    "step": "write_index",
                    "metadata": str(metadata),
                    "user_info": json.dumps(user_info, sort_keys=True),
                    **common,
                }
            )
        with _timed(seconds, "pack"):
            for searcher, encoder in encoders.items():
                paths = {"encoder": str(encoder), "searcher": str(target / searcher)}
                worker.call({"step": "pack", **paths, **common})
                sizes[encoder.name] = encoder.stat().st_size
                sizes[searcher] = (target / searcher).stat().st_size
    shutil.rmtree(scratch)
    return sizes


def _blocks(dim: int, parameters: IndexParameters) -> int:
    return -(-dim // parameters.dims_per_block)


def _estimate(images: int, dim: int, parameters: IndexParameters) -> float:
    """Seconds a build takes, as measured on two cores with 1,000 to 100,000 images."""
    return 2 + images * (70e-6 + 2.7e-6 * _blocks(dim, parameters))


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
