"""Child process in which the Task Library runs queries on a searcher file.

A session (searchforge.processes.isolated) opens one searcher, then handles `search`, `embed` and `memory` requests.
Images are resized here, with the preprocessing of the corpus: the Task Library would skip pixels when it shrinks a
large photo, which changes its embedding. Apps should also resize photos with a filter.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from searchforge.errors import JobError, UsageError
from searchforge.image_decoding import RejectedInput
from searchforge.preprocessing import Preprocessing
from searchforge.processes import isolated

MODULE = "serving_check.measurement.task_library"
"""Module that a Session runs."""

IMPORTS = (
    "tensorflow_lite_support.python.task.text.text_searcher",
    "tensorflow_lite_support.python.task.text.text_embedder",
    "tensorflow_lite_support.python.task.vision.image_searcher",
    "tensorflow_lite_support.python.task.vision.image_embedder",
)
"""Modules that are imported once for all sessions; see searchforge.processes.fork_server."""

_DEFAULT_HITS = 10


class _Searcher:
    """A TextSearcher or ImageSearcher, and embedders of the same kind."""

    def __init__(self, path: str, kind: str, threads: int, max_pixels: int) -> None:
        from tensorflow_lite_support.python.task.text import text_embedder, text_searcher
        from tensorflow_lite_support.python.task.vision import image_embedder, image_searcher

        self._path, self._kind, self._threads, self._max_pixels = path, kind, threads, max_pixels
        self._embedders: dict[str, Any] = {}
        if kind == "text":
            self._create_searcher = text_searcher.TextSearcher.create_from_options
            self._searcher_options = text_searcher.TextSearcherOptions
            self._create_embedder = text_embedder.TextEmbedder.create_from_options
            self._embedder_options = text_embedder.TextEmbedderOptions
        else:
            self._create_searcher = image_searcher.ImageSearcher.create_from_options
            self._searcher_options = image_searcher.ImageSearcherOptions
            self._create_embedder = image_embedder.ImageEmbedder.create_from_options
            self._embedder_options = image_embedder.ImageEmbedderOptions
        self._memory_before = _resident_bytes()
        self._open(_DEFAULT_HITS)

    def _open(self, hits: int) -> None:
        from tensorflow_lite_support.python.task.processor.proto.search_options_pb2 import SearchOptions

        options = self._searcher_options(self._base(self._path), search_options=SearchOptions(max_results=hits))
        try:
            self._searcher = self._create_searcher(options)
        except (ValueError, RuntimeError) as error:
            raise JobError(f"the Task Library cannot open {Path(self._path).name}: {error}") from error
        self._hits = hits

    def _base(self, path: str) -> Any:
        from tensorflow_lite_support.python.task.core.base_options import BaseOptions

        return BaseOptions(file_name=path, num_threads=self._threads)

    @property
    def user_info(self) -> str:
        info: str = self._searcher.get_user_info()
        return info

    @property
    def memory(self) -> int:
        """Growth of the process in bytes since the searcher was opened."""
        return _resident_bytes() - self._memory_before

    def search(self, query: str, hits: int) -> dict[str, Any]:
        if hits > self._hits:  # the Task Library fixes the number of hits when it opens a searcher
            self._open(hits)
        result, milliseconds = _timed(self._searcher.search, self._prepare(query))
        neighbors = [
            {"distance": neighbor.distance, "metadata": bytes(neighbor.metadata).decode(errors="replace")}
            for neighbor in result.nearest_neighbors[:hits]
        ]
        return {"hits": neighbors, "milliseconds": milliseconds}

    def embed(self, query: str, encoder: str) -> dict[str, Any]:
        if encoder not in self._embedders:
            self._embedders[encoder] = self._create_embedder(self._embedder_options(self._base(encoder)))
        result, milliseconds = _timed(self._embedders[encoder].embed, self._prepare(query))
        vector = np.asarray(result.embeddings[0].feature_vector.value, np.float32)
        return {"embedding": vector.tolist(), "milliseconds": milliseconds}

    def _prepare(self, query: str) -> Any:
        if self._kind == "text":
            try:
                query.encode()
            except UnicodeEncodeError as error:
                raise UsageError(f"query {query[:80]!r} is not valid Unicode ({error.reason}); send UTF-8") from None
            return query
        from tensorflow_lite_support.python.task.vision.core.tensor_image import TensorImage

        try:
            data = Path(query).read_bytes()
            self._pixels = self._preprocessing().pixels(data, self._max_pixels)
        except OSError as error:
            raise UsageError(f"query image {query} cannot be read: {error.strerror}") from None
        except RejectedInput as error:
            raise UsageError(
                f"query image {query} cannot be used ({error}); give a JPEG, PNG, WEBP, AVIF, BMP or GIF"
            ) from None
        return TensorImage.create_from_array(self._pixels)  # does not keep the array alive

    def _preprocessing(self) -> Preprocessing:
        try:
            return Preprocessing.parse(json.loads(self.user_info)["preprocessing"])
        except (ValueError, KeyError, TypeError):
            raise JobError(
                f"USER_INFO of {Path(self._path).name} does not state the preprocessing, so images cannot be searched; "
                "build the index again"
            ) from None


def _timed(answer: Callable[[Any], Any], query: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    try:
        result = answer(query)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise JobError(f"the Task Library failed: {reason}") from error
    return result, (time.perf_counter() - start) * 1e3


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


_opened: list[_Searcher] = []


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Handles one request.

    Operations are `open` (path, kind, threads, max_pixels: larger query images are refused), `search` (query, hits),
    `embed` (query, encoder) and `memory`.
    """
    operation = request["operation"]
    if operation == "open":
        start = time.perf_counter()
        _opened.clear()
        _opened.append(_Searcher(request["path"], request["kind"], request["threads"], request["max_pixels"]))
        return {"user_info": _opened[0].user_info, "seconds": time.perf_counter() - start}
    (searcher,) = _opened
    if operation == "search":
        return searcher.search(request["query"], request["hits"])
    if operation == "embed":
        return searcher.embed(request["query"], request["encoder"])
    if operation == "memory":
        return {"bytes": searcher.memory}
    raise ValueError(f"unknown operation {json.dumps(operation)}")


if __name__ == "__main__":
    isolated.serve(handle)
