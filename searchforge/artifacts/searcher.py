"""File names of a searcher, which the indexer writes, the check opens and a release contains."""

from __future__ import annotations

TEXT_SEARCHER = "text_searcher.tflite"
IMAGE_SEARCHER = "image_searcher.tflite"
INDEX = "index.ldb"
