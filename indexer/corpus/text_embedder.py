"""Worker process that embeds texts as a device does: with the TFLite Task Library, on one thread."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.errors import JobError
from searchforge.processes import isolated

MODULE = "indexer.corpus.text_embedder"
"""Module that `isolated.Session` runs; a request holds the arguments of `embed_with_task_library`."""

IMPORTS = ("tflite_support.task",)
"""Modules that the fork server imports once for all sessions (searchforge.processes.fork_server)."""


def embed_with_task_library(encoder: Path, texts: list[str], output: Path) -> None:
    """Writes the embeddings of texts to a file.

    Args:
      encoder: TFLite file of the text encoder.
      texts: Texts to embed, at least one.
      output: .npy file of [n, dim] float32.

    Raises:
      JobError: The Task Library cannot run the file or rejects a text.
    """
    embedder = open_text_embedder(encoder)
    np.save(output, np.stack([embed_text(embedder, text) for text in texts]), allow_pickle=False)


def embed_text(embedder: Any, text: str) -> npt.NDArray[np.float32]:
    """Returns the embedding [dim] of a text; raises JobError if the Task Library rejects it."""
    try:
        result = embedder.embed(text)
    except (RuntimeError, TypeError, ValueError) as error:  # a TypeError means that the text cannot be encoded as UTF-8
        reason = str(error).partition("\n")[0]
        raise JobError(
            f"the Task Library rejects the text {text[:80]!r}: {reason}; correct or remove it in the captions"
        ) from error
    return np.array(result.embeddings[0].feature_vector.value, np.float32)


@functools.lru_cache(1)
def open_text_embedder(encoder: Path) -> Any:
    """Returns a TextEmbedder for a file; raises JobError if the Task Library cannot run it.

    The last one is cached: opening a file takes longer than embedding a batch.
    """
    from tflite_support.task import core, text

    options = text.TextEmbedderOptions(core.BaseOptions(file_name=str(encoder), num_threads=1))
    try:
        return text.TextEmbedder.create_from_options(options)
    except (RuntimeError, ValueError) as error:
        raise JobError(
            f"the Task Library cannot run {encoder}: {error}; pass a text encoder or train it again"
        ) from error


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    embed_with_task_library(Path(request["encoder"]), request["texts"], Path(request["output"]))
    return {}


if __name__ == "__main__":
    isolated.serve(_handle)
