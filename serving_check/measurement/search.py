"""Runs queries on a searcher file through the Task Library, in a child process."""

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
"""Seconds after which an answer counts as a hang."""


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
      id: Id of the item.
      score: Dot product of query and item as the index approximates it; higher is better.
      metadata: Metadata of the item.
    """

    id: str
    score: float
    metadata: dict[str, Any]


class Searcher:
    """A searcher file, opened in a child process. Use as a context manager.

    Args:
      path: text_searcher.tflite or image_searcher.tflite.
      kind: Type of queries; by default it follows from the file name.
      threads: Number of threads of the interpreter.

    Attributes:
      path: Absolute path of the file.
      user_info: JSON that the indexer stored: fingerprint, counts, parameters.
      load_seconds: Time to open the file.

    Raises:
      UsageError: The file does not exist.
      JobError: The Task Library cannot open the file.
    """

    def __init__(self, path: Path, kind: Literal["text", "image"] | None = None, threads: int = 1) -> None:
        if not path.is_file():
            raise UsageError(f"searcher {path} does not exist; publish a release, or choose another one")
        self.kind = kind or ("image" if path.name.startswith("image") else "text")
        self.path = path.resolve()
        self._session = Session(task_library.MODULE)
        self.reopen(threads)

    def reopen(self, threads: int = 1) -> None:
        """Opens the file again, in a new process if the earlier one has ended.

        Reusing a process takes a fraction of the time to start one, but makes `memory_bytes` meaningless, because the
        process reuses memory that its earlier files freed. Arguments and errors are those of the class.
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
        """Returns the k nearest items of a text, best first; fewer if the searched partitions contain fewer."""
        self._require("text")
        return self.timed_search(text, k)[0]

    def search_image(self, path: Path, k: int = 10) -> list[Hit]:
        """Returns the k nearest items of an image file, best first.

        Raises:
          UsageError: The file is not an image that can be decoded.
        """
        self._require("image")
        return self.timed_search(str(path), k)[0]

    def timed_search(self, query: str, k: int) -> tuple[list[Hit], float]:
        """Returns the hits of a query (a text, or the path of an image) and its milliseconds, including the encoding.

        Raises:
          JobError: The Task Library refuses the query.
          ChildCrash: Native code crashed or hung on this query.
        """
        if k < 1:
            raise UsageError(f"{k} hits were requested; request 1 or more")
        answer = self._session.call({"operation": "search", "query": query, "hits": k}, _ANSWER_SECONDS)
        return [_hit(found) for found in answer["hits"]], answer["milliseconds"]

    def timed_embed(self, query: str, encoder: Path | None = None) -> tuple[npt.NDArray[np.float32], float]:
        """Returns the query's embedding, [dim] float32, and its milliseconds.

        Args:
          encoder: TFLite file that embeds the query; by default the searcher itself, which maps its embeddings into the
            space of the codes.
        """
        request = {"operation": "embed", "query": query, "encoder": str((encoder or self.path).resolve())}
        answer = self._session.call(request, _ANSWER_SECONDS)
        return np.asarray(answer["embedding"], np.float32), answer["milliseconds"]

    def memory_bytes(self) -> int:
        """Returns the growth of the process since the file was opened, including mapped files."""
        grown: int = self._session.call({"operation": "memory"})["bytes"]
        return grown

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._session.pid

    @property
    def ended(self) -> bool:
        """Whether the child process has ended on its own."""
        return self._session.ended

    def close(self) -> None:
        """Ends the child process."""
        self._session.close()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require(self, kind: str) -> None:
        if self.kind != kind:
            raise UsageError(f"this searcher takes {self.kind} queries, not {kind} queries; open the other file")


def _hit(found: dict[str, Any]) -> Hit:
    try:
        metadata = json.loads(found["metadata"])
        return Hit(id=metadata.pop("id"), score=-found["distance"], metadata=metadata)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise JobError(
            f"the metadata of a hit is {found['metadata'][:80]!r}, expected a JSON object with an id; "
            "build the index again"
        ) from None
