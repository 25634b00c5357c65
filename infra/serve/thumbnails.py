"""JPEG thumbnails of a release's items, made from the corpus that the release was built from."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.serve.request_error import RequestError
from infra.source_table import find_source, table_path
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import SearchforgeError
from searchforge.image_decoding import RejectedInput, decode
from searchforge.processes.fork_server import python_path
from searchforge.reporting.thumbnails import encode_jpeg
from searchforge.sources import SourceReader

SIZES = {"small": 400, "large": 1200}
"""Maximum length in pixels of the longer side, by name."""

_JPEG_QUALITY = 82


@dataclass(frozen=True)
class State:
    """Whether thumbnails are available.

    Attributes:
      name: `preparing` while the source table is being built.
      reason: Why thumbnails are not, or not yet, available.
    """

    name: Literal["ready", "preparing", "none"]
    reason: str = ""


class Thumbnails:
    """Thumbnails of the items of one embedding run. Call `start` before use and `close` after it.

    Args:
      workspaces: Workspaces in which to look for the run; the first that contains it is used.
      embeddings: Id of the run.
      max_pixels: Maximum number of pixels of an image; larger ones are refused before they are decoded.
    """

    def __init__(self, workspaces: Sequence[Workspace], embeddings: str, max_pixels: int) -> None:
        self._embeddings = embeddings
        self._max_pixels = max_pixels
        self._reader = SourceReader()
        self._table = Path()
        self._builder: subprocess.Popen[str] | None = None
        self._workspace = next((w for w in workspaces if w.committed("embeddings", embeddings)), None)
        if self._workspace is None:
            roots = " or ".join(dict.fromkeys(workspace.root for workspace in workspaces))
            self.state = State("none", f"workspace {roots} has no embeddings {embeddings}; name another --workspace")
        elif Manifest.model_validate(self._workspace.marker("embeddings", embeddings)).modality != "images":
            self.state = State("none", "the corpus consists of texts")
        else:
            self.state = State("preparing", "thumbnails are being prepared; retry in a few seconds")

    def start(self) -> None:
        """Builds the source table in the background unless it exists."""
        if self.state.name != "preparing" or self._workspace is None:
            return
        try:
            self._table = table_path(self._workspace, self._embeddings)
        except SearchforgeError as error:
            self.state = State("none", str(error))
            return
        if self._table.exists():
            self.state = State("ready")
            return
        self._builder = subprocess.Popen(
            [sys.executable, "-m", "infra.source_table", self._workspace.root, self._embeddings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
        threading.Thread(target=self._wait, args=(self._builder,), name="source table", daemon=True).start()

    def close(self) -> None:
        """Stops the background process."""
        if self._builder is not None:
            self._builder.kill()  # the next builder discards the incomplete table
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._builder.wait(timeout=10)

    def read(self, id: str, size: str) -> bytes:
        """Returns a JPEG of an item's image. Thread-safe.

        Args:
          id: Id of the item.
          size: One of SIZES.

        Raises:
          RequestError: 503 while the source table is being built; 404 if the image is not available.
        """
        state = self.state
        if state.name == "preparing":
            raise RequestError(503, state.reason, retry_after=2)
        if state.name == "none":
            raise RequestError(404, f"thumbnails are not available: {state.reason}")
        source = find_source(self._table, id)
        if source is None:
            raise RequestError(404, f"embeddings {self._embeddings} have no item with this id")
        data = self._reader.read(source.uri, source.byte_range, source.content_hash)
        if data is None:
            raise RequestError(404, f"image {source.uri} cannot be read, or has changed since it was embedded")
        try:
            image = decode(data, self._max_pixels, SIZES[size])
        except RejectedInput as error:
            raise RequestError(404, f"image {source.uri} cannot be decoded: {error}") from None
        image.thumbnail((SIZES[size], SIZES[size]))
        return encode_jpeg(image, _JPEG_QUALITY)

    def _wait(self, builder: subprocess.Popen[str]) -> None:
        _, errors = builder.communicate()
        if builder.returncode == 0:
            self.state = State("ready")
        else:
            last = (errors.strip().splitlines() or [f"exit code {builder.returncode}"])[-1]
            self.state = State("none", f"the source table cannot be built: {last}")
