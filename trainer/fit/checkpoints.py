"""Where checkpoints of training are kept: in the workspace, so that every node of a cluster reaches them."""

from __future__ import annotations

import os
from typing import Any

from searchforge.storage.base import GCS_SCHEME


class CheckpointStore:
    """A folder of the workspace, as Ray Train wants it.

    Attributes:
      filesystem: of pyarrow; it may be sent to other processes.
      path: of the folder on it.

    Args:
      root: of the workspace: a local folder, which all nodes must see under this path, or gs://bucket/prefix.
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
        """Deletes the checkpoints of a run, if there are any."""
        from pyarrow import fs

        folder = f"{self.path}/{run}"
        if self.filesystem.get_file_info(folder).type == fs.FileType.Directory:
            self.filesystem.delete_dir(folder)
