"""Finds the earlier searcher whose quantizer a build may use again, so that only a corpus' change is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from indexer.quantization.quantizer import Quantizer
from indexer.tuning.settings import Setting
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import IndexConfig
from searchforge.errors import UsageError

QUANTIZER = "quantizer.safetensors"
"""File of a searcher's quantizer."""

NOT_TRAINED = {"reuse_from", "max_drift", "runner", "beam_options"}
"""Keys of the configuration that do not change what is trained."""


@dataclass(frozen=True)
class Base:
    """A quantizer with its history.

    Attributes:
      setting: of its index.
      trained_on: the embedding run that it was trained on.
      trained: `drift.statistics` of that run's index.
      tuning: what the tuner measured then.
    """

    quantizer: Quantizer
    setting: Setting
    trained_on: Manifest
    trained: dict[str, float]
    tuning: dict[str, Any]


def training_config(config: IndexConfig) -> dict[str, Any]:
    """Returns the settings that decide what is trained."""
    return config.model_dump(mode="json", exclude=NOT_TRAINED)


def find_base(workspace: Workspace, manifest: Manifest, encoder: str, config: IndexConfig) -> Base | None:
    """Returns what `index.reuse_from` names; `auto`: the latest searcher of the same encoder and settings, if any.

    Raises:
      UsageError: the searcher that is named has another encoder or other settings, or is not there.
    """
    if config.reuse_from == "none":
        return None
    named = config.reuse_from != "auto"
    builds = [
        workspace.marker("searchers", id) for id in ([config.reuse_from] if named else workspace.ids("searchers"))
    ]
    fitting = []
    for build in builds:
        wanted = {"encoder": encoder, "fingerprint": manifest.fingerprint}
        differs = [key for key, value in wanted.items() if build.get(key) != value]
        if config.changed_since(build.get("config"), NOT_TRAINED):
            differs.append("config")
        if not differs and workspace.committed("embeddings", build["training"]["embeddings"]):
            fitting.append(build)
        elif named:
            raise UsageError(
                f"searcher {config.reuse_from} (index.reuse_from) has another {' and '.join(differs) or 'corpus'}; "
                "name another one, or leave it out"
            )
    if not fitting:
        return None
    build = max(fitting, key=lambda build: build["created"])
    path = workspace.local("searchers", build["id"]) / QUANTIZER
    return Base(
        Quantizer.from_bytes(path.read_bytes(), str(path)),
        Setting(**build["parameters"]),
        Manifest.model_validate(workspace.marker("embeddings", build["training"]["embeddings"])),
        build["training"]["statistics"],
        build["training"]["tuning"],
    )
