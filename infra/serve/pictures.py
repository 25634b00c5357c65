"""Pictures of a release's items, re-encoded as small JPEGs from the corpus that the release was made of."""

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

from infra.serve.refusal import Refusal
from infra.serve.source_table import find_source, table_path
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import SearchforgeError
from searchforge.preprocessing import RejectedInput, decode
from searchforge.processes.fork_server import python_path
from searchforge.reporting.thumbnails import encode_jpeg
from searchforge.sources import SourceReader

SIDES = {"small": 400, "large": 1200}
"""Pixels of the longer side at most, by name of a size."""

_QUALITY = 82  # of the JPEGs


@dataclass(frozen=True)
class State:
    """Whether there are pictures.

    Attributes:
      name: `preparing`: the table of sources is being built.
      reason: why there are none, or none yet.
    """

    name: Literal["ready", "preparing", "none"]
    reason: str = ""


class Pictures:
    """Of one embedding run. `start` before use, `close` after it.

    Args:
      workspaces: where the run may be; the first one that has it is used.
      embeddings: id of the run.
      max_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, workspaces: Sequence[Workspace], embeddings: str, max_pixels: int) -> None:
        self._embeddings = embeddings
        self._max_pixels = max_pixels
        self._sources = SourceReader()
        self._path = Path()
        self._builder: subprocess.Popen[str] | None = None
        self._workspace = next((w for w in workspaces if w.committed("embeddings", embeddings)), None)
        if self._workspace is None:
            roots = " or ".join(dict.fromkeys(workspace.root for workspace in workspaces))
            self.state = State("none", f"workspace {roots} has no embeddings {embeddings}; give one with --workspace")
        elif Manifest.model_validate(self._workspace.marker("embeddings", embeddings)).modality != "images":
            self.state = State("none", "the corpus is made of texts")
        else:
            self.state = State("preparing", "pictures are being prepared; ask again in a few seconds")

    def start(self) -> None:
        """Makes the table of sources in the background, where it is not there yet."""
        if self.state.name != "preparing" or self._workspace is None:
            return
        try:
            self._path = table_path(self._workspace, self._embeddings)
        except SearchforgeError as error:
            self.state = State("none", str(error))
            return
        if self._path.exists():
            self.state = State("ready")
            return
        self._builder = subprocess.Popen(
            [sys.executable, "-m", "infra.serve.source_table", self._workspace.root, self._embeddings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
        threading.Thread(target=self._wait, args=(self._builder,), name="sources", daemon=True).start()

    def close(self) -> None:
        """Ends the background work."""
        if self._builder is not None:
            self._builder.kill()  # an unfinished table is thrown away by the next one that builds it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._builder.wait(timeout=10)

    def thumbnail(self, id: str, size: str) -> bytes:
        """Returns a JPEG of an item's image. May be called from any thread.

        Args:
          id: of the item.
          size: a key of SIDES.

        Raises:
          Refusal: 503 while the table of sources is built; 404 where the picture cannot be had.
        """
        state = self.state
        if state.name == "preparing":
            raise Refusal(503, state.reason, retry_after=2)
        if state.name == "none":
            raise Refusal(404, f"there are no pictures: {state.reason}")
        source = find_source(self._path, id)
        if source is None:
            raise Refusal(404, f"embeddings {self._embeddings} hold no item with this id")
        data = self._sources.read(source.uri, source.byte_range, source.content_hash)
        if data is None:
            raise Refusal(404, f"the image {source.uri} cannot be read, or has changed since it was embedded")
        try:
            image = decode(data, self._max_pixels, SIDES[size])
        except RejectedInput as error:
            raise Refusal(404, f"the image {source.uri} cannot be decoded: {error}") from None
        image.thumbnail((SIDES[size], SIDES[size]))
        return encode_jpeg(image, _QUALITY)

    def _wait(self, builder: subprocess.Popen[str]) -> None:
        _, errors = builder.communicate()
        if builder.returncode == 0:
            self.state = State("ready")
        else:
            last = (errors.strip().splitlines() or [f"exit code {builder.returncode}"])[-1]
            self.state = State("none", f"the table of sources cannot be built: {last}")
