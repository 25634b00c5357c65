"""Plans a run: what is left to do goes into the run's folder, one plan file for each shard that will be written.

PLAN.json, written last, commits the plan. Workers read no more than their shard's file.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from beam_jobs.planning.listing import CorpusListing
from beam_jobs.planning.shards import Shard, write_plan
from searchforge.artifacts.manifest import Manifest, ShardInfo
from searchforge.artifacts.workspace import Workspace

PLAN = "PLAN.json"


class EmbedPlan(BaseModel):
    """What a run does, as PLAN.json keeps it.

    Attributes:
      base: id of the manifest it builds on.
      inputs: listed items.
      carried: shard files of earlier runs, each with the records that stay.
      sizes: items of every shard that is written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None
    inputs: int
    carried: tuple[ShardInfo, ...]
    sizes: tuple[int, ...]

    @property
    def shards(self) -> list[Shard]:
        """The shards that are written."""
        return [Shard(index, len(self.sizes)) for index in range(len(self.sizes))]


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
      source: of the corpus.
      shards: number of shards to write; derived from what is left to do by default.
      max_dead_fraction: of the records in the files of earlier runs; with more, all records are copied.
    """
    carried: tuple[ShardInfo, ...] = ()
    if base:
        listing.read_base(workspace, base)
        carried = listing.reuse(base, max_dead_fraction)
    # What is not local is read for its content only where most of it is carried over.
    listing.find_contents(max_bytes, base is not None, remote=base is not None and base.source == source)
    listing.share_contents()
    return _commit(listing, workspace, folder, base, carried, shards)


def write_compaction(
    listing: CorpusListing, workspace: Workspace, folder: str, base: Manifest, *, shards: int | None
) -> EmbedPlan:
    """Plans a run that copies every live record of `base`."""
    listing.read_base(workspace, base)
    listing.add_base(base)
    listing.share_contents()
    return _commit(listing, workspace, folder, base, (), shards)


def read(workspace: Workspace, folder: str) -> EmbedPlan | None:
    """Returns the plan of an unfinished run; None where there is none that can be followed."""
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
    sizes = listing.assign(shards)
    plan = EmbedPlan(base=base.id if base else None, inputs=listing.count, carried=carried, sizes=sizes)
    for shard in plan.shards:
        # A report of another plan would let this one skip the shard.
        workspace.storage.delete(f"{folder}/{shard.name('done', 'json')}")
        write_plan(workspace.storage, folder, shard, listing.tasks(shard.index, base))
    workspace.storage.write(f"{folder}/{PLAN}", plan.model_dump_json().encode())
    return plan
