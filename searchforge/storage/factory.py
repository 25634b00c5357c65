"""Opens a storage by its address."""

from __future__ import annotations

from searchforge.errors import UsageError
from searchforge.storage.base import GCS_SCHEME, Storage
from searchforge.storage.local import LocalStorage


def open_storage(root: str) -> Storage:
    """Opens a local folder or gs://bucket/prefix.

    Raises:
      UsageError: The scheme is not supported, or credentials are missing.
    """
    if root.startswith(GCS_SCHEME):
        from searchforge.storage.gcs import GcsStorage

        return GcsStorage(root)
    if "://" in root:
        raise UsageError(f"storage {root!r} is not supported; expected a local folder or gs://bucket/prefix")
    return LocalStorage(root)
