"""Plans a run: compares the corpus with known releases, chooses the encoder, and decides which stages have work.

A release matches the corpus if it was built with the same encoder from the same contents, and its index and check have
the configured settings. Captions do not count: they tune an index but are not part of it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.reindex import journal
from infra.reindex.journal import PlanEntry
from infra.releases.channels import Pointer
from infra.releases.releases import Release, open_target, read_release
from searchforge.artifacts.encoder import EncoderInfo
from searchforge.artifacts.manifest import Manifest, Modality, describe_rejects, read_shards
from searchforge.artifacts.workspace import Kind, Workspace
from searchforge.captions.dataset import has_captions
from searchforge.config import Config
from searchforge.errors import UsageError
from searchforge.hashing import canonical_json, sha256_bytes

if TYPE_CHECKING:
    from beam_jobs.planning.listing import CorpusListing

MODALITY: Modality = "images"

PROVENANCE_KINDS: dict[str, Kind] = {
    "encoder": "encoders",
    "embeddings": "embeddings",
    "searcher": "searchers",
    "check": "checks",
}
"""Kind of each artifact in a release's provenance, by its key there."""


@dataclass(frozen=True)
class KnownRelease:
    """A release built in this workspace: the live one, the latest one of `reindex`, or a withdrawn one.

    Attributes:
      why_not_live: Reason why it is not live; empty for the live one.
    """

    release: Release
    why_not_live: str


@dataclass(frozen=True)
class ReindexPlan:
    """Work that a run has to do.

    Attributes:
      entry: Plan as the journal records it.
      encoder: Id of the encoder that embeds the corpus; None if one has to be trained.
      matching_release: Id of a release that matches the corpus, in which case there is no work; None if there is none.
      manifest: Finished embedding run of the corpus, whose retryable rejects are tried again; None if the corpus has to
        be embedded.
      known: Releases that the corpus was compared with, the most relevant first.
    """

    entry: PlanEntry
    encoder: str | None
    matching_release: str | None
    manifest: Manifest | None
    known: tuple[KnownRelease, ...]

    @property
    def summary(self) -> str:
        """Human-readable description of the changes and of the work."""
        entry = self.entry
        rejects = f", {describe_rejects(self.manifest.rejected_by_reason)}" if self.manifest else ""
        return (
            f"{entry.items:,} images: {entry.added:,} added, {entry.changed:,} changed, {entry.removed:,} removed, "
            f"{entry.unchanged:,} unchanged{rejects}\n  {entry.reason}\n  {entry.mode}: "
            f"{', '.join(entry.work) or 'no work'}"
        )


def make_plan(config: Config, listing: CorpusListing, pointer: Pointer) -> ReindexPlan:
    """Plans a run by comparing the listed corpus with the known releases.

    Args:
      listing: Listing of the corpus; it is not changed.
      pointer: Pointer of the channel to publish to.

    Raises:
      UsageError: The choice of the encoder is ambiguous, or the captions cannot be used.
      JobError: An artifact is damaged, or the storage is unavailable.
    """
    from beam_jobs.embed import finished_run
    from beam_jobs.planning.listing import Changes

    workspace = Workspace(config.workspace)
    known = find_known_releases(config, pointer)
    encoder, why = choose_encoder(config, known, pointer.withdrawn_encoders)
    manifest = finished_run(config, encoder, MODALITY, listing) if encoder else None
    unread = manifest.retryable if manifest else 0
    if manifest and not unread and (match := find_matching_release(config, known, manifest)):
        counts = {"items": listing.count, **vars(Changes(0, 0, 0, listing.count))}
        entry = PlanEntry(mode="nothing", reason=_reason_for_no_work(match), **counts)
        return ReindexPlan(entry, encoder, match.release.id, manifest, known)
    base = _manifest(workspace, known[0].release) if known else None
    changes = listing.changes(workspace, base) if base else Changes(listing.count, 0, 0, 0)
    counts = {"items": listing.count, **vars(changes)}
    full = encoder is None or base is None or base.encoder != encoder
    entry = PlanEntry(
        mode="full" if full else "delta",
        reason=why if why and full else "; ".join(filter(None, (_reason(config, known, counts, unread), why))),
        **counts,
        train=encoder is None,
        embed=manifest is None or unread > 0,
        index=True,
        check=True,
        publish=True,
    )
    return ReindexPlan(entry, encoder, None, manifest, known)


def find_known_releases(config: Config, pointer: Pointer) -> tuple[KnownRelease, ...]:
    """Returns the releases built in this workspace to compare with: the live one, the latest, and withdrawn ones."""
    workspace, target = Workspace(config.workspace), open_target(config)
    latest = journal.latest_release(workspace.storage, pointer.channel)
    found = []
    for id in dict.fromkeys((pointer.release, latest, *reversed(pointer.withdrawn))):
        if id and target.committed("releases", id):
            release = read_release(target, id)
            if all(workspace.committed(kind, release.provenance[key]) for key, kind in PROVENANCE_KINDS.items()):
                found.append(KnownRelease(release, _why_not_live(id, pointer)))
    return tuple(found)


def _why_not_live(id: str, pointer: Pointer) -> str:
    if id == pointer.release:
        return ""
    return "it was rolled back" if id in pointer.withdrawn else f"release {pointer.release} was made live later"


def choose_encoder(
    config: Config, known: Sequence[KnownRelease], withdrawn: Collection[str] = ()
) -> tuple[str | None, str]:
    """Chooses the encoder that embeds the corpus.

    Args:
      withdrawn: Ids of encoders that were rolled back; they are used only if there is no other one.

    Returns:
      The encoder's id, or None if one has to be trained; and why it is not the live release's encoder, or not the one
      that the configuration asks for, else empty.

    Raises:
      UsageError: There are several encoders, none of which is in use, or the configured one does not exist.
    """
    workspace, retrain = Workspace(config.workspace), config.reindex.retrain
    used = [release.release.provenance["encoder"] for release in known]
    if config.encoder:
        workspace.marker("encoders", config.encoder)  # raises if it does not exist
        return config.encoder, _replacement(config.encoder, used)
    existing = workspace.ids("encoders")
    candidates = list(dict.fromkeys([*used, *_embedding_encoders(workspace), *existing]))
    candidates = [id for id in candidates if id in existing]
    accepted = [id for id in candidates if id not in withdrawn]
    why = "an encoder is trained, since there is none"
    if candidates and not (retrain == "never" or not has_captions(config.data)):
        if retrain == "data":
            from trainer.train import planned_id

            planned = planned_id(config)
            candidates = [planned] if planned in existing else []
            why = "an encoder is trained: the captions, their images or the training settings changed"
        else:
            from trainer.identity import has_settings

            bundles = ((id, EncoderInfo.model_validate(workspace.marker("encoders", id))) for id in candidates)
            candidates = [id for id, bundle in bundles if has_settings(bundle, config.train)]
            why = "an encoder is trained: the training settings changed"
    elif len(candidates) > 1 and not used and not _embedding_encoders(workspace):
        raise UsageError(
            f"workspace {workspace.root} contains encoders {', '.join(candidates)}, none of which is in use; embed the "
            "corpus with one of them first (`searchforge embed --encoder ID`)"
        )
    if not candidates:
        return None, why
    encoder = next((id for id in candidates if id not in withdrawn), candidates[0])
    if encoder in withdrawn and accepted:
        return accepted[0], (
            f"encoder {encoder} has the configured settings but was rolled back, so encoder {accepted[0]} stays in use"
        )
    return encoder, _replacement(encoder, used)


def _replacement(encoder: str, used: Sequence[str]) -> str:
    return f"encoder {encoder} replaces {used[0]}" if used and used[0] != encoder else ""


def find_matching_release(config: Config, known: Sequence[KnownRelease], manifest: Manifest) -> KnownRelease | None:
    """Returns the first release with the contents of an embedding run and the configured settings, or None."""
    return next((candidate for candidate in known if not _differences(config, candidate.release, manifest)), None)


def _differences(config: Config, release: Release, manifest: Manifest) -> list[str]:
    """Returns how a release differs from one built from an embedding run with the current configuration."""
    workspace = Workspace(config.workspace)
    found = []
    if release.provenance["encoder"] != manifest.encoder:
        found.append("the encoder changed")
    elif not _same_contents(workspace, _manifest(workspace, release), manifest):
        found.append("the corpus changed")
    return found + _changed_settings(config, release)


def _changed_settings(config: Config, release: Release) -> list[str]:
    from indexer.identity import FORMAT_VERSION, changed_settings
    from serving_check.schema import REPORT_VERSION

    workspace = Workspace(config.workspace)
    build = workspace.marker("searchers", release.provenance["searcher"])
    report = workspace.marker("checks", release.provenance["check"])
    found = []
    for name, version, keys in (
        ("index", (build.get("version"), FORMAT_VERSION), changed_settings(build, config.index)),
        ("check", (report.get("version"), REPORT_VERSION), config.check.changed_since(report.get("config") or {})),
    ):
        if version[0] != version[1]:
            found.append(f"this version of searchforge has another {name} format")
        elif keys:
            found.append(f"{', '.join(f'{name}.{key}' for key in keys)} changed")
    return found


def _reason(config: Config, known: Sequence[KnownRelease], counts: dict[str, int], unread: int) -> str:
    if not known:
        return f"channel {config.reindex.channel} has no release that was built in this workspace yet"
    changes = [f"{counts[key]:,} {key}" for key in ("added", "changed", "removed") if counts[key]]
    found = ([f"images {', '.join(changes)}"] if changes else []) + _changed_settings(config, known[0].release)
    found += [f"{unread:,} of {counts['items']:,} items could not be read and are tried again"] if unread else []
    return f"since release {known[0].release.id}: {'; '.join(found) or 'files were rewritten'}"


def _reason_for_no_work(match: KnownRelease) -> str:
    id = match.release.id
    if not match.why_not_live:
        return f"the live release {id} matches the corpus"
    return (
        f"release {id} matches the corpus but is not live: {match.why_not_live}; "
        f"`searchforge rollback --to {id}` makes it live"
    )


def _manifest(workspace: Workspace, release: Release) -> Manifest:
    return Manifest.model_validate(workspace.marker("embeddings", release.provenance["embeddings"]))


def _embedding_encoders(workspace: Workspace) -> list[str]:
    """Returns the ids of the encoders of all embedding runs, most recent first."""
    runs = [workspace.marker("embeddings", id) for id in workspace.ids("embeddings")]
    return [run["encoder"] for run in sorted(runs, key=lambda run: str(run.get("created", "")), reverse=True)]


def _same_contents(workspace: Workspace, one: Manifest, other: Manifest) -> bool:
    """Returns whether two embedding runs have the same items, regardless of when their files were written."""
    if one.id == other.id:
        return True
    return one.records == other.records and _contents_hash(workspace, one) == _contents_hash(workspace, other)


def _contents_hash(workspace: Workspace, manifest: Manifest) -> int:
    """Returns an order-independent hash of all items: the sum of their hashes modulo 2**256."""
    hashes = (
        sha256_bytes(canonical_json([record.id, record.content_hash, record.metadata]))
        for record in read_shards(workspace, manifest)
    )
    return functools.reduce(lambda total, digest: (total + int(digest, 16)) % 2**256, hashes, 0)
