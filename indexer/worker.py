"""The process in which ScaNN and tflite-support run (searchforge.isolated); files pass in and out by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from indexer import ondevice_index, packing
from indexer.parameters import IndexParameters
from indexer.quantize import QuantizedCorpus, quantize
from searchforge import isolated


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Does one step: `quantize`, `write_index` or `pack`."""
    step = request["step"]
    if step == "quantize":
        vectors = np.load(request["vectors"], allow_pickle=False)
        corpus = quantize(vectors, IndexParameters(**request["parameters"]))
        corpus.save(Path(request["quantized"]))
        return {}
    if step == "write_index":
        return ondevice_index.write_index(
            QuantizedCorpus.load(Path(request["quantized"])),
            IndexParameters(**request["parameters"]),
            Path(request["metadata"]).read_bytes().splitlines(),
            request["user_info"],
            Path(request["index"]),
        )
    if step == "pack":
        packing.pack_searcher(Path(request["encoder"]), Path(request["index"]), Path(request["searcher"]))
        return {}
    raise ValueError(f"unknown step {step!r}")


if __name__ == "__main__":
    isolated.serve(handle)
