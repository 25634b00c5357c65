"""Worker process in which tflite-support runs (searchforge.processes.isolated); data is exchanged as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from indexer.device.folding_check import require_equal_dot_products
from indexer.device.packing import pack_searcher
from searchforge.processes import isolated

MODULE = "indexer.device.worker"
"""Module that `isolated.Session` runs."""

IMPORTS = (
    "tflite_support.task",
    "tensorflow_lite_support.metadata.metadata_schema_py_generated",
    "tensorflow_lite_support.metadata.cc.python._pywrap_metadata_version",
)
"""Modules that the fork server imports once for all sessions (searchforge.processes.fork_server)."""


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Runs one step: `fold` folds and verifies the query map of an encoder, `pack` adds an index to an encoder."""
    step = request["step"]
    if step == "fold":
        encoder, folded = Path(request["encoder"]), Path(request["folded"])
        pack_searcher(encoder, None, folded, np.load(request["query_map"], allow_pickle=False))
        transform = np.load(request["transform"], allow_pickle=False)
        return {"error": require_equal_dot_products(encoder, folded, transform, request["images"])}
    if step == "pack":
        pack_searcher(Path(request["folded"]), Path(request["index"]), Path(request["searcher"]))
        return {}
    raise ValueError(f"unknown step {step!r}")


if __name__ == "__main__":
    isolated.serve(handle)
