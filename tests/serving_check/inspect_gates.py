"""Runs parts of a check: the gates that read files only, and optionally those that run one of the searchers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from searchforge.artifacts.encoder import EncoderInfo, InputKind
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from serving_check.inspection import CheckedArtifacts, Inspection
from serving_check.measurement.corpus import load_corpus
from serving_check.measurement.queries import PROBE_TEXTS, caption_queries, held_out, image_queries, probe_images

FILE_GATES = {"files", "model", "metadata", "index", "fingerprint", "items", "item_metadata", "codes", "partitions"}
"""Gates that read files only."""


def failed_gates(config: Config, searcher: str, *run: InputKind) -> dict[str, str]:
    """Returns the details of the failed gates by name.

    Args:
      run: The searchers to run as well; without any, only FILE_GATES can fail.
    """
    workspace, settings = Workspace(config.workspace), config.check
    build = workspace.marker("searchers", searcher)
    manifest = Manifest.model_validate(workspace.marker("embeddings", build["embeddings"]))
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", build["encoder"]))
    corpus = load_corpus(workspace, manifest)
    encoders = workspace.local("encoders", bundle.id)
    folder = workspace.local("searchers", searcher)
    artifacts = CheckedArtifacts(folder, encoders, build, manifest, bundle, corpus, settings)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        inspection = Inspection(artifacts, scratch)
        inspection.inspect_files()
        for kind in run:
            if kind == "text":
                captions = caption_queries(held_out(config, config.index.seed), corpus, settings.queries, settings.seed)
                inspection.inspect_searcher(kind, captions, PROBE_TEXTS)
            else:
                images, _ = image_queries(corpus, settings.images, settings.seed, scratch)
                inspection.inspect_searcher(kind, images, probe_images(scratch))
        return {gate.name: gate.detail for gate in inspection.gates() if not gate.passed}
