"""A corpus of tiny images and a workspace with an encoder, which `reindex` processes in a few seconds."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, TrainConfig, load_config
from searchforge.hashing import sha256_bytes, sha256_file
from tests.indexer.tiny_corpus import tiny_encoder

SETTINGS: Mapping[str, Any] = {
    "reindex.retrain": "never",
    "reindex.backoff_seconds": 0.0,
    "embed.shards": 2,
    "embed.threads": 1,
    "index.code_bytes": 8,
    "index.partitions": 4,
    "index.partitions_searched": 4,
    "index.recall_at_10": None,
    "check.queries": 8,
    "check.images": 8,
    "check.hostile_megapixels": 0.3,
    "check.min_recall_at_10": None,
    "check.max_latency_growth": None,
}
"""Settings under which every image is found, and no result depends on the speed of the machine."""


@dataclass(frozen=True)
class Scenario:
    """A corpus folder and the configuration of its workspace."""

    images: Path
    config: Config

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.config.workspace)

    def draw(self, name: str, seed: int) -> None:
        """Writes an image of the corpus."""
        pixels = np.random.default_rng([1, seed]).integers(0, 256, (8, 8, 3), np.uint8)
        self.images.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.images / name)

    def change(self, generator: random.Random, step: int) -> None:
        """Adds, changes, removes and renames some images."""
        names = sorted(path.name for path in self.images.iterdir())
        changed, removed, renamed = generator.sample(names, 3)
        self.draw(changed, generator.randrange(2**31))
        (self.images / removed).unlink()
        (self.images / renamed).rename(self.images / f"renamed-{step}-{renamed[-7:]}")
        for number in range(2):
            self.draw(f"added-{step}-{number}.png", generator.randrange(2**31))


def make_scenario(root: Path, images: int = 40, workspace: str | None = None, **settings: Any) -> Scenario:
    """Draws a corpus and commits an encoder; settings are configuration keys with `__` in place of the dot."""
    config = load_config(
        None,
        {
            "workspace": workspace or str(root / "workspace"),
            "corpus.source": str(root / "images"),
            **SETTINGS,
            **{key.replace("__", "."): value for key, value in settings.items()},
        },
    )
    scenario = Scenario(root / "images", config)
    for number in range(images):
        scenario.draw(f"{number:03}.png", number)
    write_encoder(scenario.workspace)
    return scenario


def write_encoder(workspace: Workspace, id: str = "tiny", settings: TrainConfig | None = None) -> None:
    """Commits a copy of the tiny encoder with a unique fingerprint.

    Args:
      settings: That it says it was trained with.
    """
    _, _, bundle = tiny_encoder()
    with workspace.create("encoders", id) as staging:
        for name in (TEXT_TFLITE, IMAGE_TFLITE):
            shutil.copy(bundle / name, staging.path / name)
        info = json.loads((bundle / "encoder.json").read_text())
        files = {name: sha256_file(staging.path / name) for name in (TEXT_TFLITE, IMAGE_TFLITE)}
        report: dict[str, Any] = {"agreement": {"image": {"min_cosine": 1.0}}}
        if settings:
            report["settings"] = settings.model_dump(mode="json")
        fingerprint = sha256_bytes(id.encode())
        staging.commit({**info, "id": id, "fingerprint": fingerprint, "files": files, "report": report})
