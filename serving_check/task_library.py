"""The process in which the Task Library answers queries, on one thread, from the very file that would ship.

A session (searchforge.isolated) opens one searcher and then answers: `search`, `embed`. Images are brought to the
model's input size here, by the preprocessing that the corpus went through: the Task Library would skip pixels where
it shrinks a large photo, which moves its embedding (an app should shrink photos with a filter, too).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from searchforge import isolated
from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.errors import JobError, UsageError
from searchforge.preprocessing import Preprocessing, RejectedInput

MODULE = "serving_check.task_library"
"""What a Session runs."""

_DEFAULT_HITS = 10


class _Searcher:
    """TextSearcher or ImageSearcher, and the embedder of the same kind over another file."""

    def __init__(self, path: str, kind: str, encoder: str) -> None:
        self._path, self._kind, self._encoder = path, kind, encoder
        self._embedder: Any = None
        self._open(_DEFAULT_HITS)

    def _open(self, hits: int) -> None:
        from tensorflow_lite_support.python.task.core.base_options import BaseOptions
        from tensorflow_lite_support.python.task.processor.proto.search_options_pb2 import SearchOptions

        options = {
            "base_options": BaseOptions(file_name=self._path, num_threads=1),
            "search_options": SearchOptions(max_results=hits),
        }
        try:
            if self._kind == "text":
                from tensorflow_lite_support.python.task.text import text_searcher as text

                self._searcher = text.TextSearcher.create_from_options(text.TextSearcherOptions(**options))
            else:
                from tensorflow_lite_support.python.task.vision import image_searcher as image

                self._searcher = image.ImageSearcher.create_from_options(image.ImageSearcherOptions(**options))
        except (ValueError, RuntimeError) as error:
            raise JobError(f"the Task Library does not open {Path(self._path).name}: {error}") from error
        self._hits = hits

    @property
    def user_info(self) -> str:
        info: str = self._searcher.get_user_info()
        return info

    def search(self, query: str, hits: int) -> dict[str, Any]:
        if hits > self._hits:  # the number of hits is fixed when a searcher is opened
            self._open(hits)
        result, milliseconds = _timed(self._searcher.search, self._prepare(query))
        neighbors = [
            {"distance": neighbor.distance, "metadata": bytes(neighbor.metadata).decode()}
            for neighbor in result.nearest_neighbors[:hits]
        ]
        return {"hits": neighbors, "milliseconds": milliseconds}

    def embed(self, query: str) -> dict[str, Any]:
        from tensorflow_lite_support.python.task.core.base_options import BaseOptions

        if self._embedder is None:
            options = BaseOptions(file_name=self._encoder, num_threads=1)
            if self._kind == "text":
                from tensorflow_lite_support.python.task.text import text_embedder as text

                self._embedder = text.TextEmbedder.create_from_options(text.TextEmbedderOptions(options))
            else:
                from tensorflow_lite_support.python.task.vision import image_embedder as image

                self._embedder = image.ImageEmbedder.create_from_options(image.ImageEmbedderOptions(options))
        result, milliseconds = _timed(self._embedder.embed, self._prepare(query))
        vector = np.asarray(result.embeddings[0].feature_vector.value, np.float32)
        return {"embedding": vector.tolist(), "milliseconds": milliseconds}

    def _prepare(self, query: str) -> Any:
        if self._kind == "text":
            return query
        from tensorflow_lite_support.python.task.vision.core.tensor_image import TensorImage

        try:
            data = Path(query).read_bytes()
            self._pixels = self._preprocessing().pixels(data, DEFAULT_MAX_PIXELS)
        except OSError as error:
            raise UsageError(f"query image {query} cannot be read: {error.strerror}") from None
        except RejectedInput as error:
            raise UsageError(
                f"query image {query} cannot be used ({error}); give a JPEG, PNG, WEBP, BMP or GIF"
            ) from None
        return TensorImage.create_from_array(self._pixels)  # which refers to the array without keeping it alive

    def _preprocessing(self) -> Preprocessing:
        try:
            return Preprocessing.parse(json.loads(self.user_info)["preprocessing"])
        except (ValueError, KeyError, TypeError):
            raise JobError(
                f"USER_INFO of {Path(self._path).name} names no preprocessing, so an image cannot be prepared for it; "
                "build the index again"
            ) from None


def _timed(answer: Callable[[Any], Any], query: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    try:
        result = answer(query)
    except (ValueError, RuntimeError) as error:
        raise JobError(f"the Task Library does not answer: {error}") from error
    return result, (time.perf_counter() - start) * 1e3


_opened: list[_Searcher] = []


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Answers `open` (path, kind, encoder), `search` (query, hits) and `embed` (query)."""
    operation = request["operation"]
    if operation == "open":
        start = time.perf_counter()
        _opened[:] = [_Searcher(request["path"], request["kind"], request["encoder"])]
        return {"user_info": _opened[0].user_info, "seconds": time.perf_counter() - start}
    (searcher,) = _opened
    if operation == "search":
        return searcher.search(request["query"], request["hits"])
    if operation == "embed":
        return searcher.embed(request["query"])
    raise ValueError(f"unknown operation {json.dumps(operation)}")


if __name__ == "__main__":
    isolated.serve(handle)
