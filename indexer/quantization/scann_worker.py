"""Worker process in which ScaNN trains (searchforge.processes.isolated); arrays are exchanged as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from indexer.quantization.scann_training import train_with_scann
from searchforge.processes import isolated

MODULE = "indexer.quantization.scann_worker"
"""Module that `isolated.Session` runs."""


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Trains a quantizer on the sample of a request and writes it to a file."""
    sample = np.load(request["sample"], allow_pickle=False)
    quantizer = train_with_scann(sample, request["partitions"], request["dims_per_block"], request["seed"])
    Path(request["quantizer"]).write_bytes(quantizer.to_bytes())
    return {}


if __name__ == "__main__":
    isolated.serve(handle)
