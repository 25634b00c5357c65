"""The process in which ScaNN and tflite-support run (searchforge.isolated); files pass in and out by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from indexer.fold_proof import require_equal_products
from indexer.packing import pack_searcher
from indexer.scann_training import train_with_scann
from searchforge import isolated

MODULE = "indexer.worker"
"""What a Session runs."""

IMPORTS = (
    "tflite_support.task",
    "tensorflow_lite_support.metadata.metadata_schema_py_generated",
    "tensorflow_lite_support.metadata.cc.python._pywrap_metadata_version",
)
"""What sessions import once, see searchforge.fork_server."""


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Does one step: `train`, `fold` or `pack`."""
    step = request["step"]
    if step == "train":
        sample = np.load(request["sample"], allow_pickle=False)
        quantizer = train_with_scann(sample, request["partitions"], request["dims_per_block"], request["seed"])
        Path(request["quantizer"]).write_bytes(quantizer.to_bytes())
        return {}
    if step == "fold":
        encoder, folded = Path(request["encoder"]), Path(request["folded"])
        pack_searcher(encoder, None, folded, np.load(request["query_map"], allow_pickle=False))
        transform = np.load(request["transform"], allow_pickle=False)
        return {"error": require_equal_products(encoder, folded, transform, request["images"])}
    if step == "pack":
        pack_searcher(Path(request["folded"]), Path(request["index"]), Path(request["searcher"]))
        return {}
    raise ValueError(f"unknown step {step!r}")


if __name__ == "__main__":
    isolated.serve(handle)
