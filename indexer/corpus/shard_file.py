"""Files of shards: local ones, and those that are read from the workspace's storage without a local copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from searchforge.errors import JobError
from searchforge.hashing import sha256_bytes
from searchforge.storage.base import Storage


class ShardFile(Protocol):
    """File of a shard: a local path, or a StoredShard."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class StoredShard:
    """Shard file that every reader takes from the workspace's storage and verifies, so that no local copy is needed.

    Attributes:
      path: Path in the storage.
      sha256: Expected SHA-256 of the file.
    """

    storage: Storage
    path: str
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def read_bytes(self) -> bytes:
        """Returns the content of the file.

        Raises:
          JobError: The file is missing or damaged.
        """
        try:
            data = self.storage.read(self.path)
        except FileNotFoundError:
            raise JobError(f"{self} is missing; embed the corpus again") from None
        if (found := sha256_bytes(data)) != self.sha256:
            raise JobError(f"{self} has SHA-256 {found}, but the manifest lists {self.sha256}; embed the corpus again")
        return data

    def __str__(self) -> str:
        return f"{self.storage.root}/{self.path}"
