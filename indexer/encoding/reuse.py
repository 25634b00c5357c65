"""Finds the earlier searcher whose quantizer a build may reuse, so that only the changes of a corpus are encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from indexer.identity import changed_settings
from indexer.quantization.quantizer import Quantizer
from indexer.tuning.parameters import IndexParameters
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import IndexConfig
from searchforge.errors import UsageError

QUANTIZER = "quantizer.safetensors"
"""File name of a searcher's quantizer."""


@dataclass(frozen=True)
class ReusableBuild:
    """An earlier build whose quantizer may be reused.

    Attributes:
      parameters: Parameters of its index.
      trained_on: Embedding run that the quantizer was trained on.
      statistics: `drift.index_statistics` of the index of that run.
      tuning: Recall that was measured when the quantizer was trained, as in build.json.
    """

    quantizer: Quantizer
    parameters: IndexParameters
    trained_on: Manifest
    statistics: dict[str, float]
    tuning: dict[str, Any]


def find_reusable_build(
    workspace: Workspace, manifest: Manifest, encoder: str, config: IndexConfig
) -> ReusableBuild | None:
    """Returns the build that `index.reuse_from` names; for `auto`, the latest one with the same encoder and settings.

    Returns:
      None if `auto` finds no such build, or `index.reuse_from` is `none`.

    Raises:
      UsageError: The named searcher does not exist, or has another encoder or other settings.
    """
    if config.reuse_from == "none":
        return None
    named = config.reuse_from != "auto"
    builds = [
        workspace.marker("searchers", id) for id in ([config.reuse_from] if named else workspace.ids("searchers"))
    ]
    matching = []
    for build in builds:
        wanted = {"encoder": encoder, "fingerprint": manifest.fingerprint}
        differing = [key for key, value in wanted.items() if build.get(key) != value]
        if changed_settings(build, config):
            differing.append("config")
        if not differing and workspace.committed("embeddings", build["training"]["embeddings"]):
            matching.append(build)
        elif named:
            raise UsageError(
                f"searcher {config.reuse_from} (index.reuse_from) has a different "
                f"{' and '.join(differing) or 'corpus'}; name another searcher or omit the key"
            )
    if not matching:
        return None
    build = max(matching, key=lambda build: build["created"])
    path = workspace.local("searchers", build["id"]) / QUANTIZER
    return ReusableBuild(
        Quantizer.from_bytes(path.read_bytes(), str(path)),
        IndexParameters(**build["parameters"]),
        Manifest.model_validate(workspace.marker("embeddings", build["training"]["embeddings"])),
        build["training"]["statistics"],
        build["training"]["tuning"],
    )
