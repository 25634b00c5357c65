"""Stores training checkpoints in the workspace, where every node of a cluster can reach them."""

from __future__ import annotations

import os
from typing import Any

from searchforge.storage.base import GCS_SCHEME


class CheckpointStore:
    """The checkpoint folder of a workspace, as a pyarrow filesystem and path for Ray Train.

    Attributes:
      filesystem: pyarrow filesystem; it can be pickled.
      path: Path of the folder on that filesystem.

    Args:
      root: Root of the workspace: a local folder that all nodes see under the same path, or gs://bucket/prefix.
    """

    def __init__(self, root: str) -> None:
        from pyarrow import fs

        self.filesystem: Any
        if root.startswith(GCS_SCHEME):
            scheme, _, host = os.environ.get("STORAGE_EMULATOR_HOST", "").partition("://")
            emulator = {"anonymous": True, "scheme": scheme, "endpoint_override": host} if host else {}
            self.filesystem = fs.GcsFileSystem(**emulator)
            root = root.removeprefix(GCS_SCHEME)
        else:
            self.filesystem = fs.LocalFileSystem()
        self.path = f"{root.rstrip('/')}/cache/training"

    def delete(self, run: str) -> None:
        """Deletes the checkpoints of a run, if any."""
        from pyarrow import fs

        folder = f"{self.path}/{run}"
        if self.filesystem.get_file_info(folder).type == fs.FileType.Directory:
            self.filesystem.delete_dir(folder)
