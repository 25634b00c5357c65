"""An index and a check that take no time: they hold what plans, releases and retention read of the real ones."""

from __future__ import annotations

from typing import Any

from indexer.base import training_config
from indexer.build import FORMAT_VERSION
from infra.reindex.run import Calls
from searchforge.config import Config
from searchforge.hashing import content_id
from searchforge.workspace import Workspace
from serving_check.report import REPORT_VERSION
from tests.infra.release_world import commit_check, commit_searcher


def index(config: Config, embeddings: str, encoder: str) -> dict[str, Any]:
    """Stands for infra.api.index."""
    workspace = Workspace(config.workspace)
    made_from = {"embeddings": embeddings, "encoder": encoder, "config": training_config(config.index)}
    id = content_id(made_from)
    training = {"embeddings": embeddings}
    commit_searcher(workspace, id, **made_from, version=FORMAT_VERSION, training=training, quantizer="none")
    return workspace.marker("searchers", id)


def check(config: Config, searcher: str, channel: str) -> dict[str, Any]:
    """Stands for infra.api.check."""
    workspace = Workspace(config.workspace)
    build = workspace.marker("searchers", searcher)
    provenance = {"encoder": build["encoder"], "embeddings": build["embeddings"], "searcher": searcher}
    settings = config.check.model_dump(mode="json")
    id = content_id({"searcher": searcher, "settings": settings})
    return commit_check(workspace, id, searcher, provenance=provenance, config=settings, version=REPORT_VERSION)


STUBS = Calls(index=index, check=check)
