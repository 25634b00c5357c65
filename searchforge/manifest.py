"""The manifest of an embedding run: written last, it is the commit. No manifest, no data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_file
from searchforge.records import EmbeddingRecord, read_embeddings


class ShardInfo(BaseModel):
    """One shard file: its name, how many records it holds, its size in bytes and its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^data-\d{5}-of-\d{5}\.tfrecord$")
    count: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """What an embedding run read and wrote; `inputs = embedded + reused + rejected`, always.

    Attributes:
      encoder: id of the encoder bundle.
      fingerprint: that bundle's fingerprint.
      preprocessing: that bundle's preprocessing string.
      dim: dimension of the embeddings.
      rejected_by_reason: how many inputs were rejected, by reason.
      seconds: wall time of the job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    id: str
    encoder: str
    fingerprint: str
    preprocessing: str
    dim: int = Field(gt=0)
    source: str
    inputs: int
    embedded: int
    reused: int
    rejected: int
    rejected_by_reason: dict[str, int]
    shards: tuple[ShardInfo, ...]
    rejects: tuple[str, ...]
    seconds: float

    @model_validator(mode="after")
    def _counts_add_up(self) -> Manifest:
        if self.inputs != self.embedded + self.reused + self.rejected:
            raise ValueError(
                f"{self.inputs} inputs != {self.embedded} embedded + {self.reused} reused + {self.rejected} rejected"
            )
        if sum(shard.count for shard in self.shards) != self.embedded + self.reused:
            raise ValueError(
                f"shards hold {sum(s.count for s in self.shards)} records, expected {self.embedded + self.reused}"
            )
        if sum(self.rejected_by_reason.values()) != self.rejected:
            raise ValueError(f"reasons {self.rejected_by_reason} do not add up to {self.rejected} rejected")
        return self

    @property
    def summary(self) -> str:
        """One line for people."""
        reasons = "".join(f", {count} {reason}" for reason, count in self.rejected_by_reason.items())
        rate = self.embedded / self.seconds if self.seconds else 0.0
        return (
            f"embeddings/{self.id}: {self.inputs} inputs = {self.embedded} embedded + {self.reused} reused + "
            f"{self.rejected} rejected{reasons}; {self.seconds:.1f} s, {rate:.0f} images/s"
        )

    def require_fingerprint(self, fingerprint: str, of: str) -> None:
        """Raises UsageError unless the embeddings were made by the encoder with this fingerprint."""
        if self.fingerprint != fingerprint:
            raise UsageError(
                f"embeddings {self.id} were made by encoder {self.fingerprint}, but {of} is encoder {fingerprint}: "
                "the two spaces differ; embed the corpus again with the encoder you want to search with"
            )


def read_shards(directory: Path, manifest: Manifest) -> Iterator[EmbeddingRecord]:
    """Yields every record of an embedding run, shard by shard, each shard verified against the manifest first.

    Raises:
      JobError: a shard is missing, or its bytes are not the ones the manifest lists.
    """
    for shard in manifest.shards:
        path = directory / shard.name
        if not path.is_file():
            raise JobError(f"{path} is missing, but the manifest lists it; delete {directory} and embed again")
        if (found := sha256_file(path)) != shard.sha256:
            raise JobError(
                f"{path} has SHA-256 {found}, the manifest says {shard.sha256}; delete {directory} and embed again"
            )
        yield from read_embeddings(path)
