"""Names of a searcher's files: what the indexer packs, the check opens and a release holds."""

from __future__ import annotations

TEXT_SEARCHER = "text_searcher.tflite"
IMAGE_SEARCHER = "image_searcher.tflite"
INDEX = "index.ldb"
