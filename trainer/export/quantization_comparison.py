"""Compares the quantizations of a text encoder by size, latency and R@10.

Each quantization is exported to a temporary file and run by the Task Library on held-out captions. The bundle keeps
only the one chosen in training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import TEXT_TFLITE
from searchforge.errors import JobError
from searchforge.processes import task_library
from trainer.evaluation import retrieval
from trainer.evaluation.report import QuantizationComparison, QuantizedTextEncoder
from trainer.export.encoders import Quantization, TextEncoder

QUERIES = 1000
"""Maximum number of captions used as queries."""

Array = npt.NDArray[np.float32]


def compare_texts(
    encoder: TextEncoder,
    chosen: tuple[Quantization, Path],
    calibration: Sequence[str],
    captions: Sequence[str],
    owners: npt.NDArray[np.int64],
    expected: Array,
    gallery: Array,
) -> QuantizationComparison:
    """Exports and measures a text encoder in all its quantizations.

    Args:
      chosen: Quantization and file of the bundle's TFLite model, which is not exported again.
      calibration: See `TextEncoder.save_tflite`.
      captions: n held-out captions, of which at most QUERIES are used, evenly spaced.
      owners: int64 [n], row of the gallery that each caption belongs to.
      expected: float32 [n, dim], embeddings of the captions by TensorFlow.
      gallery: float32 [m, dim], embeddings of the images.
    """
    sample = np.unique(np.linspace(0, len(captions) - 1, min(QUERIES, len(captions))).astype(np.int64))
    texts, owners, expected = [captions[i] for i in sample], owners[sample], expected[sample]
    results: dict[str, QuantizedTextEncoder] = {}
    for quantization in encoder.quantizations:
        with tempfile.TemporaryDirectory() as folder:
            model = chosen[1] if quantization == chosen[0] else Path(folder) / TEXT_TFLITE
            try:
                if quantization != chosen[0]:
                    encoder.save_tflite(model, quantization, calibration)
                embedded, ms = task_library.embed_texts(model, texts)
            except JobError as error:
                results[quantization] = QuantizedTextEncoder(error=str(error))
                continue
            results[quantization] = QuantizedTextEncoder(
                bytes=model.stat().st_size,
                ms=ms,
                r_at_10=retrieval.text_to_image(embedded, gallery, owners)["r_at_10"],
                mean_cosine=float((embedded * expected).sum(1).mean()),
            )
    return QuantizationComparison(
        queries=len(texts),
        gallery=len(gallery),
        tensorflow=retrieval.text_to_image(expected, gallery, owners)["r_at_10"],
        chosen=chosen[0],
        forms=results,
    )
