"""Checks with the Task Library that the exported TFLite encoders match their SavedModels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operations, for loading text encoders

from searchforge.artifacts.encoder import IMAGE_SAVED_MODEL, IMAGE_TFLITE, TEXT_SAVED_MODEL, TEXT_TFLITE
from searchforge.errors import JobError
from searchforge.processes import task_library

MIN_COSINE = 0.995
"""Minimum mean cosine similarity between TFLite and TensorFlow embeddings."""

MIN_SINGLE_COSINE = 0.98
"""Minimum cosine similarity of any single input."""

SAMPLES = 200
"""Maximum number of inputs to compare."""


def check_texts(bundle: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Compares text_encoder.tflite, run by the TextEmbedder on raw strings, with text_encoder/.

    Returns:
      `inputs`, `mean_cosine`, `min_cosine` and `ms`, the median milliseconds per text on one thread.

    Raises:
      JobError: A cosine is below its minimum, or the Task Library cannot run the model.
    """
    signature = tf.saved_model.load(str(bundle / TEXT_SAVED_MODEL)).signatures["serving_default"]
    expected = signature(tf.constant(list(texts)))["embedding"].numpy()
    return _compare(TEXT_TFLITE, expected, *task_library.embed_texts(bundle / TEXT_TFLITE, texts))


def check_images(bundle: Path, images: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Compares image_encoder.tflite, run by the ImageEmbedder, with image_encoder/.

    Args:
      images: uint8 [n, h, w, 3], decoded and resized.

    Returns, raises: see `check_texts`.
    """
    signature = tf.saved_model.load(str(bundle / IMAGE_SAVED_MODEL)).signatures["serving_default"]
    expected = signature(tf.constant(images))["embedding"].numpy()
    return _compare(IMAGE_TFLITE, expected, *task_library.embed_images(bundle / IMAGE_TFLITE, images))


def _compare(
    name: str, expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32], ms: float
) -> dict[str, Any]:
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(actual, axis=1)
    cosines = (expected * actual).sum(1) / np.maximum(norms, 1e-12)
    mean, minimum = float(cosines.mean()), float(cosines.min())
    if not (mean >= MIN_COSINE and minimum >= MIN_SINGLE_COSINE):  # also rejects NaN
        raise JobError(
            f"{name} deviates from TensorFlow: over {len(cosines)} inputs, the mean cosine is {mean:.4f} and the "
            f"minimum {minimum:.4f}, but at least {MIN_COSINE} and {MIN_SINGLE_COSINE} are required; the bundle is "
            "discarded. Try train.text_quantization=float16, or another tower"
        )
    return {"inputs": len(cosines), "mean_cosine": mean, "min_cosine": minimum, "ms": ms}
