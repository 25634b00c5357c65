"""Queries a searcher file through the Task Library: what `searchforge search`, the demo and a server stand on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.errors import JobError, UsageError
from searchforge.processes.isolated import Session
from serving_check.measurement import task_library

_OPEN_SECONDS = 300
_ANSWER_SECONDS = 60
"""What takes longer hangs."""


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
      id: of the item.
      score: dot product of query and item as the index approximates it; higher is closer.
      metadata: of the item.
    """

    id: str
    score: float
    metadata: dict[str, Any]


class Searcher:
    """A searcher file, open in a process of its own. Use as a context manager.

    Args:
      path: text_searcher.tflite or image_searcher.tflite.
      kind: what a query is; by default taken from the file's name.
      threads: of the interpreter.

    Attributes:
      path: of the file, absolute.
      user_info: JSON that the indexer stored: fingerprint, counts, parameters.
      load_seconds: time to open the file.

    Raises:
      UsageError: there is no such file.
      JobError: the Task Library does not open the file.
    """

    def __init__(self, path: Path, kind: Literal["text", "image"] | None = None, threads: int = 1) -> None:
        if not path.is_file():
            raise UsageError(f"searcher {path} does not exist; publish a release, or name another one")
        self.kind = kind or ("image" if path.name.startswith("image") else "text")
        self.path = path.resolve()
        self._session = Session(task_library.MODULE)
        self.reopen(threads)

    def reopen(self, threads: int = 1) -> None:
        """Opens the file again: in the same process, or in another one if that has ended.

        This takes a fraction of the time in which a process starts. Measure `memory_bytes` before: a process reuses the
        memory that its earlier files freed. Arguments and errors are those of the class.
        """
        if self._session.ended:
            self._session.close()
            self._session = Session(task_library.MODULE)
        request = {
            "operation": "open",
            "path": str(self.path),
            "kind": self.kind,
            "threads": threads,
            "max_pixels": DEFAULT_MAX_PIXELS,
        }
        try:
            opened = self._session.call(request, _OPEN_SECONDS)
        except BaseException:
            self._session.close()
            raise
        self.user_info: str = opened["user_info"]
        self.load_seconds: float = opened["seconds"]

    def search_text(self, text: str, k: int = 10) -> list[Hit]:
        """Returns the k nearest items of a text, best first; fewer where the searched partitions hold fewer."""
        self._require("text")
        return self.timed_search(text, k)[0]

    def search_image(self, path: Path, k: int = 10) -> list[Hit]:
        """Returns the k nearest items of an image file, best first.

        Raises:
          UsageError: the file is not an image that can be decoded.
        """
        self._require("image")
        return self.timed_search(str(path), k)[0]

    def timed_search(self, query: str, k: int) -> tuple[list[Hit], float]:
        """Returns hits of a query (a text, or an image's path) and its milliseconds, encoding included.

        Raises:
          JobError: the Task Library refuses the query.
          ChildCrash: the native code crashed on this query, or hung.
        """
        if k < 1:
            raise UsageError(f"{k} hits were asked for; ask for 1 or more")
        answer = self._session.call({"operation": "search", "query": query, "hits": k}, _ANSWER_SECONDS)
        return [_hit(found) for found in answer["hits"]], answer["milliseconds"]

    def timed_embed(self, query: str, encoder: Path | None = None) -> tuple[npt.NDArray[np.float32], float]:
        """Returns the query's embedding, [dim] float32, and its milliseconds.

        Args:
          encoder: TFLite file that embeds; by default the searcher itself, whose embeddings are those of the space that
            its codes are made in.
        """
        request = {"operation": "embed", "query": query, "encoder": str((encoder or self.path).resolve())}
        answer = self._session.call(request, _ANSWER_SECONDS)
        return np.asarray(answer["embedding"], np.float32), answer["milliseconds"]

    def memory_bytes(self) -> int:
        """Returns by how much the process has grown since before the file was opened; files mapped into it count."""
        grown: int = self._session.call({"operation": "memory"})["bytes"]
        return grown

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._session.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended by itself."""
        return self._session.ended

    def close(self) -> None:
        """Ends the process."""
        self._session.close()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require(self, kind: str) -> None:
        if self.kind != kind:
            raise UsageError(f"this searcher takes {self.kind} queries, not {kind}; open the other file")


def _hit(found: dict[str, Any]) -> Hit:
    try:
        metadata = json.loads(found["metadata"])
        return Hit(id=metadata.pop("id"), score=-found["distance"], metadata=metadata)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise JobError(
            f"metadata of a hit is {found['metadata'][:80]!r}, expected a JSON object with an id; build the index again"
        ) from None
