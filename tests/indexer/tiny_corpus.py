"""Builds workspaces with a tiny encoder and an embedded corpus of tiny images, each with a one-word caption."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searchforge.artifacts.encoder import EncoderInfo
from searchforge.artifacts.manifest import Manifest, ShardInfo
from searchforge.artifacts.records import EmbeddingRecord, read_embeddings, write_tfrecords
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config
from searchforge.hashing import sha256_file
from tests.indexer.tiny_encoder import TinyEncoder, random_images, save_images, unit

IMAGES = 400
DIM = 16
FINGERPRINT = "f" * 64


@functools.cache
def tiny_encoder() -> tuple[TinyEncoder, np.ndarray, Path]:
    """Returns an encoder, 400 images and the folder of its bundle; word w<i> is embedded close to image i."""
    images = random_images(IMAGES)
    encoder = TinyEncoder({"w0": np.ones(DIM)})
    vectors = np.stack([encoder.image(image) for image in images])
    noise = np.random.default_rng(1).normal(size=vectors.shape) * 0.05
    encoder.words = {f"w{i}": vector for i, vector in enumerate(unit(vectors + noise))}
    return encoder, images, encoder.bundle(FINGERPRINT)


@dataclass(frozen=True)
class TinyCorpus:
    """A workspace with encoder `tiny` and embeddings `corpus`, its configuration and its records."""

    workspace: Workspace
    config: Config
    records: list[EmbeddingRecord]


def make_corpus(root: Path, count: int = IMAGES, **settings: Any) -> TinyCorpus:
    """Commits the encoder and `count` embedded images; settings are configuration keys with `__` instead of dots."""
    encoder, images, bundle = tiny_encoder()
    workspace = Workspace(str(root / "workspace"))
    with workspace.create("encoders", "tiny") as staging:
        for name in ("text_encoder.tflite", "image_encoder.tflite"):
            shutil.copy(bundle / name, staging.path / name)
        staging.commit(json.loads((bundle / "encoder.json").read_text()))
    paths = save_images(images[:count], root / "images")
    records = [
        EmbeddingRecord(path.name, encoder.image(pixels), str(path), sha256_file(path), {"number": i})
        for i, (path, pixels) in enumerate(zip(paths, images, strict=False))
    ]
    commit_embeddings(workspace, records)
    captions = {
        "images": [
            {"id": i, "file_name": path.name, "split": "dev" if i % 2 else "train"} for i, path in enumerate(paths)
        ],
        "annotations": [{"image_id": i, "caption": f"w{i}"} for i in range(len(paths))],
    }
    (root / "captions.json").write_text(json.dumps(captions))
    overrides = {
        "workspace": workspace.root,
        "data.captions": str(root / "captions.json"),
        "data.images": str(root / "images"),
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    return TinyCorpus(workspace, load_config(None, overrides), records)


def commit_embeddings(
    workspace: Workspace,
    records: list[EmbeddingRecord],
    id: str = "corpus",
    shards: int = 2,
    dim: int = DIM,
    fingerprint: str = FINGERPRINT,
) -> Manifest:
    """Commits an embedding run of encoder `tiny`."""
    with workspace.create("embeddings", id) as staging:
        infos = []
        for shard in range(shards):
            part = records[shard::shards]
            path = staging.path / f"data-{shard:05d}-of-{shards:05d}.tfrecord"
            with path.open("wb") as file:
                write_tfrecords(file, (record.to_bytes() for record in part))
            infos.append(
                ShardInfo(name=path.name, count=len(part), bytes=path.stat().st_size, sha256=sha256_file(path))
            )
        info = EncoderInfo.model_validate(workspace.marker("encoders", "tiny"))
        manifest = Manifest(
            id=id,
            encoder="tiny",
            fingerprint=fingerprint,
            preprocessing=info.preprocessing,
            dim=dim,
            source="test",
            inputs=len(records),
            embedded=len(records),
            reused=0,
            rejected=0,
            rejected_by_reason={},
            shards=tuple(infos),
            rejects=(),
            seconds=0.0,
        )
        staging.commit(manifest.model_dump())
    return manifest


def commit_on(
    workspace: Workspace, base: Manifest, id: str, removed: set[str], added: Sequence[EmbeddingRecord]
) -> Manifest:
    """Commits a run that reuses an earlier one's shards, with some records dead, and adds a shard.

    Args:
      removed: Ids of the records that become dead.
      added: Records of the additional shard; if empty, there is none.
    """
    shards = []
    for shard in base.shards:
        run = shard.run or base.id
        path = workspace.local("embeddings", run) / shard.name
        dead = {row for row, record in enumerate(read_embeddings(path)) if record.id in removed} | set(shard.dead)
        shards.append(shard.model_copy(update={"run": run, "dead": tuple(sorted(dead))}))
    reused = sum(shard.live for shard in shards)
    with workspace.create("embeddings", id) as staging:
        if added:
            path = staging.path / "data-00000-of-00001.tfrecord"
            with path.open("wb") as file:
                write_tfrecords(file, (record.to_bytes() for record in added))
            size, sha256 = path.stat().st_size, sha256_file(path)
            shards.append(ShardInfo(name=path.name, count=len(added), bytes=size, sha256=sha256))
        counts = {"inputs": reused + len(added), "embedded": len(added), "reused": reused}
        manifest = base.model_copy(update={"id": id, "base": base.id, "shards": tuple(shards), **counts})
        staging.commit(manifest.model_dump())
    return manifest
