"""File names of a searcher, which the indexer writes, the check opens and a release contains."""

from __future__ import annotations

from searchforge.artifacts.encoder import InputKind

TEXT_SEARCHER = "text_searcher.tflite"
IMAGE_SEARCHER = "image_searcher.tflite"
INDEX = "index.ldb"

SEARCHERS: dict[InputKind, str] = {"text": TEXT_SEARCHER, "image": IMAGE_SEARCHER}
"""Name of the searcher for each kind of query."""
