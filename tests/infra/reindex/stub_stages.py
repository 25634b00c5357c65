"""An index and a check that take no time: they hold what plans, releases and retention read of the real ones."""

from __future__ import annotations

from typing import Any

from indexer.build import FORMAT_VERSION
from indexer.encoding.reuse import training_config
from infra.reindex.run import StageFunctions
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.hashing import content_id
from serving_check.schema import REPORT_VERSION
from tests.infra.releases.release_world import commit_check, commit_searcher


def index(config: Config, embeddings: str, encoder: str) -> dict[str, Any]:
    """Stands for infra.api.index."""
    workspace = Workspace(config.workspace)
    made_from = {"embeddings": embeddings, "encoder": encoder, "config": training_config(config.index)}
    id = content_id(made_from)
    training = {"embeddings": embeddings}
    commit_searcher(workspace, id, **made_from, version=FORMAT_VERSION, training=training, quantizer="none")
    return workspace.marker("searchers", id)


def check(config: Config, searcher: str, channel: str) -> dict[str, Any]:
    """Stands for infra.api.check; of all gates it knows `max_bytes_per_image`, and finds one byte an image."""
    workspace = Workspace(config.workspace)
    build = workspace.marker("searchers", searcher)
    provenance = {"encoder": build["encoder"], "embeddings": build["embeddings"], "searcher": searcher}
    settings, most = config.check.model_dump(mode="json"), config.check.max_bytes_per_image
    passed = most is None or most >= 1
    gate = {"name": "bytes_per_image", "passed": passed, "detail": f"1.0, at most {most} allowed"}
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
