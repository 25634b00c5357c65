"""The manifest of an embedding run: written last, it is the commit. No manifest, no data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from searchforge.artifacts.records import EmbeddingRecord, read_embeddings
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_file

Modality = Literal["images", "texts"]


class ShardInfo(BaseModel):
    """One shard file.

    Attributes:
      run: id of the earlier run that wrote it; empty: the manifest's own.
      count: records in the file.
      bytes, sha256: of the file.
      dead: numbers of the records, from 0, that are not part of the manifest: their items are gone or changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^data-\d{5}-of-\d{5}\.tfrecord$")
    run: str = Field(default="", pattern=r"^([0-9A-Za-z][0-9A-Za-z._-]{0,79})?$")
    count: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    dead: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _dead_are_in_the_file(self) -> ShardInfo:
        if len(set(self.dead)) != len(self.dead) or any(not 0 <= row < self.count for row in self.dead):
            raise ValueError(f"dead records of {self.name} are not distinct numbers below {self.count}")
        return self

    @property
    def live(self) -> int:
        """Records of the file that are part of the manifest."""
        return self.count - len(self.dead)


class Manifest(BaseModel):
    """What an embedding run read and wrote; `inputs = embedded + reused + rejected`, always.

    Attributes:
      modality: what was embedded.
      encoder: id of the encoder bundle.
      fingerprint: that bundle's fingerprint.
      preprocessing: that bundle's preprocessing string.
      backend: what computed the embeddings, `litert` or `tensorflow`.
      dim: dimension of the embeddings.
      method: hash of what an embedding depends on beside its input: encoder, backend, limits.
      digest: hash of the method and of the listed corpus.
      base: id of the earlier run that this one was built on.
      embedded: contents that went through the encoder.
      reused: items whose embedding was known: unchanged since the base, or of the same content as another item.
      rejected_by_reason: how many inputs were rejected, by reason.
      shards: files with the records; those of earlier runs lie in those runs' folders.
      created: when, in UTC, ISO 8601.
      seconds: wall time of the job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 2
    id: str
    modality: Modality = "images"
    encoder: str
    fingerprint: str
    preprocessing: str
    backend: str = "tensorflow"
    dim: int = Field(gt=0)
    source: str
    method: str = ""
    digest: str = ""
    base: str | None = None
    inputs: int
    embedded: int
    reused: int
    rejected: int
    rejected_by_reason: dict[str, int]
    shards: tuple[ShardInfo, ...]
    rejects: tuple[str, ...]
    created: str = ""
    seconds: float

    @model_validator(mode="after")
    def _counts_add_up(self) -> Manifest:
        if self.inputs != self.embedded + self.reused + self.rejected:
            raise ValueError(
                f"{self.inputs} inputs != {self.embedded} embedded + {self.reused} reused + {self.rejected} rejected"
            )
        if self.records != self.embedded + self.reused:
            raise ValueError(f"shards hold {self.records} live records, expected {self.embedded + self.reused}")
        if sum(self.rejected_by_reason.values()) != self.rejected:
            raise ValueError(f"reasons {self.rejected_by_reason} do not add up to {self.rejected} rejected")
        return self

    @property
    def records(self) -> int:
        """Embedded items: the live records of all shards."""
        return sum(shard.live for shard in self.shards)

    @property
    def summary(self) -> str:
        """One line for people."""
        reasons = "".join(f", {count} {reason}" for reason, count in self.rejected_by_reason.items())
        return (
            f"embeddings/{self.id}: {self.inputs} {self.modality} = {self.embedded} embedded + {self.reused} reused + "
            f"{self.rejected} rejected{reasons}; {self.seconds:.1f} s"
        )

    def require_fingerprint(self, fingerprint: str, of: str) -> None:
        """Raises UsageError unless the embeddings were made by the encoder with this fingerprint."""
        if self.fingerprint != fingerprint:
            raise UsageError(
                f"embeddings {self.id} were made by encoder {self.fingerprint}, but {of} is encoder {fingerprint}: "
                "the two spaces differ; embed the corpus again with the encoder you want to search with"
            )


def read_shards(workspace: Workspace, manifest: Manifest) -> Iterator[EmbeddingRecord]:
    """Yields every live record of an embedding run, shard by shard.

    Raises:
      JobError: a shard is missing, or its bytes are not the ones the manifest lists.
    """
    for shard, path in verified_shards(workspace, manifest):
        dead = frozenset(shard.dead)
        for row, record in enumerate(read_embeddings(path)):
            if row not in dead:
                yield record


def verified_shards(workspace: Workspace, manifest: Manifest) -> Iterator[tuple[ShardInfo, Path]]:
    """Yields every shard and its local path, once its bytes were compared to the manifest.

    Raises:
      JobError: a shard is missing, or its bytes are others.
    """
    again = f"delete {workspace.url('embeddings', manifest.id)} and embed again"
    folders: dict[str, Path] = {}
    for shard in manifest.shards:
        run = shard.run or manifest.id
        if run not in folders:
            try:
                folders[run] = workspace.local("embeddings", run)
            except UsageError:
                raise JobError(
                    f"embeddings {run}, on which embeddings {manifest.id} are built, are missing; {again}"
                ) from None
        path = folders[run] / shard.name
        if not path.is_file():
            raise JobError(f"{path} is missing, but the manifest of embeddings {manifest.id} lists it; {again}")
        if (found := sha256_file(path)) != shard.sha256:
            raise JobError(f"{path} has SHA-256 {found}, the manifest says {shard.sha256}; {again}")
        yield shard, path
