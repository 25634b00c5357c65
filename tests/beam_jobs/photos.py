"""Small synthetic photos for tests of the embedding jobs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """Returns a seeded photo of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def draw_photos(folder: Path, count: int = 20) -> Path:
    """Writes photos to a folder, every second one to a subfolder."""
    (folder / "sub").mkdir(parents=True)
    for index in range(count):
        name = f"{'sub/' if index % 2 else ''}{index:02d}.png"
        (folder / name).write_bytes(png(index))
    return folder


def embed_config(workspace: Workspace, source: Path | str, **overrides: object) -> Config:
    """Returns a configuration for a few dozen photos; the names of overrides have `__` in place of the dot."""
    values = {"workspace": workspace.root, "corpus.source": str(source), "embed.shards": 3}
    return load_config(None, {**values, **{key.replace("__", "."): value for key, value in overrides.items()}})


def records(workspace: Workspace, manifest: Manifest) -> dict[str, EmbeddingRecord]:
    """Returns every live record by its id."""
    found = list(read_shards(workspace, manifest))
    assert len({record.id for record in found}) == len(found)
    return {record.id: record for record in found}


def rejects(workspace: Workspace, manifest: Manifest) -> list[dict[str, Any]]:
    """Returns the listed rejects of a run."""
    contents = [workspace.storage.read(f"embeddings/{manifest.id}/{name}") for name in manifest.rejects]
    return [json.loads(line) for content in contents for line in content.splitlines()]


def shard_bytes(workspace: Workspace, manifest: Manifest) -> dict[str, bytes]:
    """Returns the contents of the run's own shard files."""
    folder = workspace.local("embeddings", manifest.id)
    return {shard.name: (folder / shard.name).read_bytes() for shard in manifest.shards if not shard.run}
