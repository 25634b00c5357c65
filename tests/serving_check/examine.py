"""Parts of a check: the gates that only look at files take a tenth of a second, and one searcher half of a run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from searchforge.artifacts.encoder import EncoderInfo
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from serving_check.check import NAMES
from serving_check.inspection import Examination, Kind, Subject
from serving_check.measurement.corpus import load_corpus
from serving_check.measurement.queries import PROBES, caption_queries, held_out, image_queries, probe_images

OF_FILES = {"files", "model", "metadata", "index", "fingerprint", "items", "item_metadata", "codes", "partitions"}
"""Gates that look at files only."""


def failed_gates(config: Config, searcher: str, *asked: Kind) -> dict[str, str]:
    """Returns what the gates say that fail, by name.

    Args:
      asked: the searchers that are opened and asked, too; without any, only the gates of OF_FILES can fail.
    """
    workspace, settings = Workspace(config.workspace), config.check
    build = workspace.marker("searchers", searcher)
    manifest = Manifest.model_validate(workspace.marker("embeddings", build["embeddings"]))
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", build["encoder"]))
    corpus = load_corpus(workspace, manifest)
    encoders = workspace.local("encoders", bundle.id)
    subject = Subject(workspace.local("searchers", searcher), encoders, build, manifest, bundle, corpus, settings)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        examination = Examination(subject, scratch)
        examination.examine_files(NAMES)
        for kind in asked:
            if kind == "text":
                captions = caption_queries(held_out(config, config.index.seed), corpus, settings.queries, settings.seed)
                examination.examine(kind, *NAMES[kind], captions, PROBES)
            else:
                images, _ = image_queries(corpus, settings.images, settings.seed, scratch)
                examination.examine(kind, *NAMES[kind], images, probe_images(scratch))
        return {gate.name: gate.detail for gate in examination.gates() if not gate.passed}
