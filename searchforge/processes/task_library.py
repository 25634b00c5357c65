"""Embeds texts and images as a device does: with the TFLite Task Library, on one thread of a worker process.

`embed_texts` and `embed_images` are called by any process; the other functions run in the worker. Each request is a
JSON object:

    {"do": "embed_texts", "model": path, "texts": [...], "output": .npy path}
    {"do": "embed_images", "model": path, "images": .npy path of uint8 [n, h, w, 3], "output": .npy path}

Embeddings are written as float32 [n, dim]; the reply has `ms`, the median milliseconds per input.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.errors import JobError
from searchforge.processes import isolated

MODULE = "searchforge.processes.task_library"
"""Module that `isolated.Session` runs."""

IMPORTS = ("tflite_support.task",)
"""Modules that the fork server imports once for all sessions (searchforge.processes.fork_server)."""


def embed_texts(
    model: Path, texts: Sequence[str], session: isolated.Session | None = None
) -> tuple[npt.NDArray[np.float32], float]:
    """Embeds texts with a text encoder.

    Args:
      texts: Texts to embed, at least one.
      session: Session of MODULE; default: one for this call.

    Returns:
      The embeddings, [n, dim] float32, and the median milliseconds per text.

    Raises:
      JobError: The Task Library cannot run the file or rejects a text.
    """
    return _embed_in_worker({"do": "embed_texts", "model": str(model.absolute()), "texts": list(texts)}, session)


def embed_images(model: Path, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], float]:
    """Embeds decoded images, uint8 [n, h, w, 3], with an image encoder; see `embed_texts`."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images, allow_pickle=False)
        request = {"do": "embed_images", "model": str(model.absolute()), "images": f"{folder}/images.npy"}
        return _embed_in_worker(request, None)


def _embed_in_worker(
    request: dict[str, Any], session: isolated.Session | None
) -> tuple[npt.NDArray[np.float32], float]:
    with tempfile.TemporaryDirectory() as folder:
        request = {**request, "output": f"{folder}/embeddings.npy"}
        reply = session.call(request) if session else isolated.call(MODULE, request)
        embeddings: npt.NDArray[np.float32] = np.load(request["output"], allow_pickle=False)
        return embeddings, reply["ms"]


def embed_text(embedder: Any, text: str) -> npt.NDArray[np.float32]:
    """Returns the embedding [dim] of a text; raises JobError if the Task Library rejects it."""
    try:
        return _vector(embedder.embed(text))
    except (RuntimeError, TypeError, ValueError) as error:  # a TypeError means that the text cannot be encoded as UTF-8
        reason = str(error).partition("\n")[0]
        raise JobError(
            f"the Task Library rejects the text {text[:80]!r}: {reason}; correct or remove this text"
        ) from error


def embed_image(embedder: Any, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns the embedding [dim] of an image, uint8 [h, w, 3]; raises JobError if the Task Library rejects it."""
    from tflite_support.task import vision

    pixels = np.ascontiguousarray(pixels)  # must outlive the call, which holds no reference to it
    try:
        return _vector(embedder.embed(vision.TensorImage.create_from_array(pixels)))
    except (RuntimeError, ValueError) as error:
        raise JobError(f"the Task Library rejects an image of shape {pixels.shape}: {error}") from error


@functools.lru_cache(1)
def open_text_embedder(model: Path) -> Any:
    """Returns a TextEmbedder for a file; raises JobError if the Task Library cannot run it.

    The last one is cached: opening a file takes longer than embedding a batch.
    """
    from tflite_support.task import core, text

    options = text.TextEmbedderOptions(core.BaseOptions(file_name=str(model), num_threads=1))
    return _open(model, lambda: text.TextEmbedder.create_from_options(options))


def open_image_embedder(model: Path) -> Any:
    """Returns an ImageEmbedder for a file; raises JobError if the Task Library cannot run it."""
    from tflite_support.task import core, vision

    options = vision.ImageEmbedderOptions(core.BaseOptions(file_name=str(model), num_threads=1))
    return _open(model, lambda: vision.ImageEmbedder.create_from_options(options))


def _open(model: Path, create: Callable[[], Any]) -> Any:
    try:
        return create()
    except (RuntimeError, ValueError) as error:
        raise JobError(f"the TFLite Task Library cannot run {model.name}: {error}") from error


def _vector(result: Any) -> npt.NDArray[np.float32]:
    return np.array(result.embeddings[0].feature_vector.value, np.float32)


def _embed_all(embed: Callable[[Any], npt.NDArray[np.float32]], inputs: Iterable[Any], output: Path) -> dict[str, Any]:
    vectors, milliseconds = [], []
    for value in inputs:
        start = time.perf_counter()
        vectors.append(embed(value))
        milliseconds.append(1000 * (time.perf_counter() - start))
    np.save(output, np.stack(vectors), allow_pickle=False)
    return {"ms": statistics.median(milliseconds)}


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    model, output = Path(request["model"]), Path(request["output"])
    if request["do"] == "embed_texts":
        texts = open_text_embedder(model)
        return _embed_all(lambda text: embed_text(texts, text), request["texts"], output)
    images = open_image_embedder(model)
    pixels = np.load(request["images"], allow_pickle=False)
    return _embed_all(lambda image: embed_image(images, image), pixels, output)


if __name__ == "__main__":
    isolated.serve(_handle)
