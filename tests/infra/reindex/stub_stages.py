"""Fast stand-ins for the index and check stages, with the fields that planning, publishing and retention read."""

from __future__ import annotations

from typing import Any

from indexer.identity import FORMAT_VERSION, training_config
from infra.reindex.run import StageFunctions
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.hashing import content_id
from serving_check.schema import REPORT_VERSION
from tests.infra.releases.sample_artifacts import commit_check, commit_searcher


def index(config: Config, embeddings: str, encoder: str) -> dict[str, Any]:
    """Replaces infra.stages.index."""
    workspace = Workspace(config.workspace)
    made_from = {"embeddings": embeddings, "encoder": encoder, "config": training_config(config.index)}
    id = content_id(made_from)
    training = {"embeddings": embeddings}
    commit_searcher(workspace, id, **made_from, version=FORMAT_VERSION, training=training, quantizer="none")
    return workspace.marker("searchers", id)


def check(config: Config, searcher: str, channel: str) -> dict[str, Any]:
    """Replaces infra.stages.check; its only gate is `max_bytes_per_image`; searchers have one byte per image."""
    workspace = Workspace(config.workspace)
    build = workspace.marker("searchers", searcher)
    provenance = {"encoder": build["encoder"], "embeddings": build["embeddings"], "searcher": searcher}
    settings, most = config.check.model_dump(mode="json"), config.check.max_bytes_per_image
    passed = most is None or most >= 1
    gate = {"name": "bytes_per_image", "passed": passed, "detail": f"1, the maximum is {most}"}
    return commit_check(
        workspace,
        content_id({"searcher": searcher, "settings": settings}),
        searcher,
        passed,
        gates=[gate],
        provenance=provenance,
        config=settings,
        version=REPORT_VERSION,
    )


STUBS = StageFunctions(index=index, check=check)
