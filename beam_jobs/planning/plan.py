"""Plans an embedding run and stores the plan in the run's folder, with one plan file per output shard.

PLAN.json is written last and commits the plan. Of concurrent processes that plan the same run, the first commits its
plan and the others follow it. A worker reads only the plan file of its shard.
"""

from __future__ import annotations

import secrets

from pydantic import BaseModel, ConfigDict

from beam_jobs.planning.listing import CorpusListing
from beam_jobs.planning.shards import Shard, write_plan
from searchforge.artifacts.manifest import METADATA_ERRORS, Manifest, ShardInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import ConflictError

PLAN = "PLAN.json"


class EmbedPlan(BaseModel):
    """Plan of an embedding run; the content of PLAN.json.

    Attributes:
      token: Random part of the names of the plan's files, which tells them apart from those of another plan of the run.
      base: Id of the earlier run that is reused.
      inputs: Number of listed items.
      carried: Shard files of earlier runs that stay in use, with their dead records.
      sizes: Number of items in each shard to write.
      metadata_errors: Number of items whose metadata could not be read, which METADATA_ERRORS lists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    base: str | None
    inputs: int
    carried: tuple[ShardInfo, ...]
    sizes: tuple[int, ...]
    metadata_errors: int = 0

    @property
    def shards(self) -> list[Shard]:
        """The shards to write."""
        return [Shard(index, len(self.sizes), self.token) for index in range(len(self.sizes))]


def write(
    listing: CorpusListing,
    workspace: Workspace,
    folder: str,
    base: Manifest | None,
    *,
    source: str,
    shards: int | None,
    max_bytes: int,
    max_dead_fraction: float,
) -> EmbedPlan:
    """Plans a run and writes the plan into `folder`.

    Args:
      source: Source of the corpus.
      shards: Number of shards to write; None derives it from the number of items to process.
      max_bytes: Size limit of an input.
      max_dead_fraction: Maximum fraction of dead records in the carried shard files, above which all live records are
        copied instead.
    """
    carried: tuple[ShardInfo, ...] = ()
    if base:
        listing.read_base(workspace, base)
        carried = listing.carry_over(base, max_dead_fraction)
    # Hashing remote files means reading them twice, so it only pays off when most of the corpus is carried over.
    listing.hash_candidates(max_bytes, base is not None, remote=base is not None and base.source == source)
    listing.deduplicate()
    return _commit(listing, workspace, folder, base, carried, shards)


def write_compaction(
    listing: CorpusListing, workspace: Workspace, folder: str, base: Manifest, *, shards: int | None
) -> EmbedPlan:
    """Plans a run that copies every live record of `base`, and writes the plan into `folder`."""
    listing.read_base(workspace, base)
    listing.add_base(base)
    listing.deduplicate()
    return _commit(listing, workspace, folder, base, (), shards)


def read(workspace: Workspace, folder: str) -> EmbedPlan | None:
    """Returns the plan of an unfinished run, or None if there is none or its base no longer exists."""
    try:
        plan = EmbedPlan.model_validate_json(workspace.storage.read(f"{folder}/{PLAN}"))
    except (FileNotFoundError, ValueError):
        return None
    return plan if plan.base is None or workspace.committed("embeddings", plan.base) else None


def _commit(
    listing: CorpusListing,
    workspace: Workspace,
    folder: str,
    base: Manifest | None,
    carried: tuple[ShardInfo, ...],
    shards: int | None,
) -> EmbedPlan:
    _, version = workspace.storage.read_version(f"{folder}/{PLAN}")
    sizes = listing.assign_shards(shards)
    plan = EmbedPlan(
        token=secrets.token_hex(4),
        base=base.id if base else None,
        inputs=listing.count,
        carried=carried,
        sizes=sizes,
        metadata_errors=listing.upload_metadata_errors(workspace.storage, f"{folder}/{METADATA_ERRORS}"),
    )
    for shard in plan.shards:
        write_plan(workspace.storage, folder, shard, listing.tasks(shard.index, base))
    try:
        workspace.storage.replace(f"{folder}/{PLAN}", plan.model_dump_json().encode(), version)
    except ConflictError:
        return read(workspace, folder) or plan
    return plan
