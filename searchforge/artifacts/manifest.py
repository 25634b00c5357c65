"""The manifest of an embedding run. It is written last and commits the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
      name: File name.
      run: Id of the earlier run that wrote the file; empty for the manifest's own run.
      count: Number of records in the file.
      bytes, sha256: Size and SHA-256 of the file.
      dead: Zero-based numbers of records that are not part of the manifest, because their items were removed or
        changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^data-\d{5}-of-\d{5}(-[0-9a-f]{12})?\.tfrecord$")
    run: str = Field(default="", pattern=r"^([0-9A-Za-z][0-9A-Za-z._-]{0,79})?$")
    count: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    dead: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _validate_dead(self) -> ShardInfo:
        if len(set(self.dead)) != len(self.dead) or any(not 0 <= row < self.count for row in self.dead):
            raise ValueError(f"dead records of {self.name} are not distinct numbers below {self.count}")
        return self

    @property
    def live(self) -> int:
        """Number of records that are part of the manifest."""
        return self.count - len(self.dead)


METADATA_ERRORS = "metadata-errors.jsonl"
"""Name of the file in a run's folder that lists the items whose metadata could not be read, if there are any."""


class Manifest(BaseModel):
    """Inputs and outputs of an embedding run, with `inputs = embedded + reused + rejected`.

    Attributes:
      modality: Kind of the inputs.
      encoder: Id of the encoder bundle.
      fingerprint: Fingerprint of the encoder bundle.
      preprocessing: Preprocessing string of the encoder bundle.
      backend: Runtime that computed the embeddings, `litert` or `tensorflow`.
      dim: Dimension of the embeddings.
      source: Corpus that was embedded.
      method: Hash of everything that an embedding depends on besides its input: encoder, backend, limits.
      digest: Hash of the method and of the corpus listing.
      base: Id of the earlier run that was reused, if any.
      inputs: Number of listed items.
      embedded: Number of items that were encoded.
      reused: Number of items whose embedding was known: unchanged since the base, or with the content of another item.
      rejected: Number of items that could not be embedded.
      rejected_by_reason: Number of rejected items by reason.
      retryable: Number of rejected items whose cause may pass, such as a missing file; the next run tries them again.
      shards: Files with the records; those of earlier runs are in the folders of those runs.
      rejects: Names of the files that list the rejected items.
      metadata_errors: Number of items without the part of their metadata that could not be read; the file
        METADATA_ERRORS lists them.
      created: Creation time in UTC, ISO 8601.
      seconds: Wall time of the job.
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
    retryable: int = 0
    shards: tuple[ShardInfo, ...]
    rejects: tuple[str, ...]
    metadata_errors: int = 0
    created: str = ""
    seconds: float

    @model_validator(mode="after")
    def _validate_counts(self) -> Manifest:
        if self.inputs != self.embedded + self.reused + self.rejected:
            raise ValueError(
                f"{self.inputs} inputs != {self.embedded} embedded + {self.reused} reused + {self.rejected} rejected"
            )
        if self.records != self.embedded + self.reused:
            raise ValueError(f"shards contain {self.records} live records; expected {self.embedded + self.reused}")
        if sum(self.rejected_by_reason.values()) != self.rejected:
            raise ValueError(f"reasons {self.rejected_by_reason} do not add up to {self.rejected} rejected")
        return self

    @property
    def records(self) -> int:
        """Number of live records in all shards."""
        return sum(shard.live for shard in self.shards)

    @property
    def summary(self) -> str:
        """Human-readable summary in one line."""
        return f"embeddings/{self.id} of {self.counts}; {self.seconds:.1f} s"

    @property
    def counts(self) -> str:
        """Human-readable counts of the inputs by outcome, such as `2 texts: 2 embedded, 0 reused, 0 rejected`."""
        without = f"; {self.metadata_errors:,} without unreadable metadata" if self.metadata_errors else ""
        return describe_outcomes(self.modality, self.embedded, self.reused, self.rejected_by_reason) + without

    def require_fingerprint(self, fingerprint: str, of: str) -> None:
        """Raises UsageError unless the encoder with this fingerprint computed the embeddings."""
        if self.fingerprint != fingerprint:
            raise UsageError(
                f"embeddings {self.id} were computed by encoder {self.fingerprint}, but {of} is encoder {fingerprint}: "
                "their embedding spaces differ; embed the corpus again with the encoder to search with"
            )


def describe_outcomes(noun: str, embedded: int, reused: int, rejected: Mapping[str, int]) -> str:
    """Returns the counts of items by outcome, such as `5 items: 1 embedded, 3 reused, 1 rejected (1 missing)`."""
    total = embedded + reused + sum(rejected.values())
    return f"{total:,} {noun}: {embedded:,} embedded, {reused:,} reused, {describe_rejects(rejected)}"


def describe_rejects(by_reason: Mapping[str, int]) -> str:
    """Returns the number of rejected items and their reasons, such as `3 rejected (2 truncated, 1 missing)`."""
    reasons = describe_reasons(by_reason)
    return f"{sum(by_reason.values()):,} rejected{f' ({reasons})' if reasons else ''}"


def describe_reasons(by_reason: Mapping[str, int]) -> str:
    """Returns the number of rejected items by reason, such as `2 truncated, 1 missing`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in by_reason.items())


def read_shards(workspace: Workspace, manifest: Manifest) -> Iterator[EmbeddingRecord]:
    """Yields the live records of an embedding run, shard by shard.

    Raises:
      JobError: A shard is missing or does not match its SHA-256 in the manifest.
    """
    for shard, path in verified_shards(workspace, manifest):
        dead = frozenset(shard.dead)
        for row, record in enumerate(read_embeddings(path)):
            if row not in dead:
                yield record


def verified_shards(workspace: Workspace, manifest: Manifest) -> Iterator[tuple[ShardInfo, Path]]:
    """Yields every shard with its local path, after verifying its SHA-256.

    Raises:
      JobError: A shard is missing or does not match its SHA-256 in the manifest.
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
                    f"embeddings {run}, whose shards embeddings {manifest.id} reuse, are missing; {again}"
                ) from None
        path = folders[run] / shard.name
        if not path.is_file():
            raise JobError(f"{path} is missing, but the manifest of embeddings {manifest.id} lists it; {again}")
        if (found := sha256_file(path)) != shard.sha256:
            raise JobError(f"{path} has SHA-256 {found}, but {shard.sha256} in the manifest; {again}")
        yield shard, path
