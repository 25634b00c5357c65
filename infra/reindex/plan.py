"""Plans a run: what changed since the releases that are known, which encoder embeds, and what each stage has to do.

A release holds the corpus as it is if it was made by the same encoder from the same contents, and its index and its
check have the settings of the configuration. Captions are no part of that: they tune an index, and are not in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.reindex import journal
from infra.reindex.journal import PlanEntry
from infra.releases.channels import Pointer
from infra.releases.releases import Release, open_target, read_release
from searchforge.artifacts.encoder import EncoderInfo
from searchforge.artifacts.manifest import Manifest, Modality, read_shards
from searchforge.artifacts.workspace import Kind, Workspace
from searchforge.captions.dataset import has_captions
from searchforge.config import Config
from searchforge.errors import UsageError
from searchforge.hashing import canonical_json, sha256_bytes

if TYPE_CHECKING:
    from beam_jobs.planning.listing import CorpusListing

MODALITY: Modality = "images"

MADE_FROM: dict[str, Kind] = {
    "encoder": "encoders",
    "embeddings": "embeddings",
    "searcher": "searchers",
    "check": "checks",
}
"""Artifacts that a release's provenance names."""


@dataclass(frozen=True)
class Known:
    """A release that was made in this workspace: the live one, the latest of `reindex`, or one that was rolled back.

    Attributes:
      why_not_live: empty for the live one.
    """

    release: Release
    why_not_live: str


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
      encoder: id of the one that embeds; None: it is trained.
      holds: id of the release that holds the corpus as it is, so that there is nothing to do; None: there is none.
      known: what was compared with.
    """

    entry: PlanEntry
    encoder: str | None
    holds: str | None
    known: tuple[Known, ...]

    @property
    def summary(self) -> str:
        """What was found and what will be done, for people."""
        entry = self.entry
        return (
            f"{entry.items:,} images: {entry.added:,} added, {entry.changed:,} changed, {entry.removed:,} removed, "
            f"{entry.unchanged:,} unchanged\n  {entry.reason}\n  {entry.mode}: {', '.join(entry.work) or 'no work'}"
        )


def make_plan(config: Config, listing: CorpusListing, pointer: Pointer) -> Plan:
    """Compares the listed corpus with what is released.

    Args:
      pointer: of the channel that is published to.
      listing: of the corpus; it stays as it is.

    Raises:
      UsageError: it cannot be told which encoder to use, or the captions are not usable.
      JobError: an artifact is damaged, or the storage cannot be used.
    """
    from beam_jobs.embed import finished_run
    from beam_jobs.planning.listing import Changes

    workspace = Workspace(config.workspace)
    known = known_releases(config, pointer)
    encoder, why = choose_encoder(config, known)
    manifest = finished_run(config, encoder, MODALITY, listing) if encoder else None
    if manifest and (held := holding(config, known, manifest)):
        counts = {"items": listing.count, **vars(Changes(0, 0, 0, listing.count))}
        entry = PlanEntry(mode="nothing", reason=_reason_for_nothing(held), **counts)
        return Plan(entry, encoder, held.release.id, known)
    base = _manifest(workspace, known[0].release) if known else None
    changes = listing.changes(workspace, base) if base else Changes(listing.count, 0, 0, 0)
    counts = {"items": listing.count, **vars(changes)}
    full = encoder is None or base is None or base.encoder != encoder
    entry = PlanEntry(
        mode="full" if full else "delta",
        reason=why or _reason(config, known, encoder, counts),
        **counts,
        train=encoder is None,
        embed=manifest is None,
        index=True,
        check=True,
        publish=True,
    )
    return Plan(entry, encoder, None, known)


def known_releases(config: Config, pointer: Pointer) -> tuple[Known, ...]:
    """Returns the releases that count, each once; those of other workspaces do not, since their corpora are others'."""
    workspace, target = Workspace(config.workspace), open_target(config)
    latest = journal.latest_release(workspace.storage, pointer.channel)
    found = []
    for id in dict.fromkeys((pointer.release, latest, *reversed(pointer.withdrawn))):
        if id and target.committed("releases", id):
            release = read_release(target, id)
            if all(workspace.committed(kind, release.provenance[key]) for key, kind in MADE_FROM.items()):
                found.append(Known(release, _why_not_live(id, pointer)))
    return tuple(found)


def _why_not_live(id: str, pointer: Pointer) -> str:
    if id == pointer.release:
        return ""
    return "it was rolled back" if id in pointer.withdrawn else f"release {pointer.release} was made live since"


def choose_encoder(config: Config, known: Sequence[Known]) -> tuple[str | None, str]:
    """Returns the encoder that embeds, or None where one is to be trained, and why it is not that of the live release.

    Raises:
      UsageError: there are several, none of them in use.
    """
    workspace, retrain = Workspace(config.workspace), config.reindex.retrain
    there = workspace.ids("encoders")
    used = [release.release.provenance["encoder"] for release in known]
    order = list(dict.fromkeys([*used, *_embedded_with(workspace), *there]))
    order = [id for id in order if id in there]
    why = "an encoder is trained, since there is none"
    if order and not (retrain == "never" or not has_captions(config.data)):
        if retrain == "data":
            from trainer.train import planned_id

            planned = planned_id(config)
            order = [planned] if planned in there else []
            why = "an encoder is trained: the captions, their images or the training settings changed"
        else:
            from trainer.identity import has_settings

            bundles = ((id, EncoderInfo.model_validate(workspace.marker("encoders", id))) for id in order)
            order = [id for id, bundle in bundles if has_settings(bundle, config.train)]
            why = "an encoder is trained: the training settings changed"
    elif len(order) > 1 and not used and not _embedded_with(workspace):
        raise UsageError(
            f"workspace {workspace.root} holds encoders {', '.join(order)}, and none of them is in use; embed the "
            "corpus with one of them first (`searchforge embed --encoder ID`)"
        )
    if not order:
        return None, why
    replaced = used and used[0] != order[0]
    return order[0], f"encoder {order[0]} replaces {used[0]}" if replaced else ""


def holding(config: Config, known: Sequence[Known], manifest: Manifest) -> Known | None:
    """Returns the first release that holds the contents of an embedding run, made with the configuration's settings."""
    return next((one for one in known if not _differences(config, one.release, manifest)), None)


def _differences(config: Config, release: Release, manifest: Manifest) -> list[str]:
    """Returns in what a release is not what the configuration makes of an embedding run."""
    workspace = Workspace(config.workspace)
    found = []
    if release.provenance["encoder"] != manifest.encoder:
        found.append("the encoder is another one")
    elif not _same_contents(workspace, _manifest(workspace, release), manifest):
        found.append("the corpus changed")
    return found + _changed_settings(config, release)


def _changed_settings(config: Config, release: Release) -> list[str]:
    from indexer.build import FORMAT_VERSION
    from indexer.encoding.reuse import NON_TRAINING_KEYS
    from serving_check.schema import REPORT_VERSION

    workspace = Workspace(config.workspace)
    build = workspace.marker("searchers", release.provenance["searcher"])
    report = workspace.marker("checks", release.provenance["check"])
    found = []
    for name, version, keys in (
        (
            "index",
            (build.get("version"), FORMAT_VERSION),
            config.index.changed_since(build.get("config"), NON_TRAINING_KEYS),
        ),
        ("check", (report.get("version"), REPORT_VERSION), config.check.changed_since(report.get("config") or {})),
    ):
        if version[0] != version[1]:
            found.append(f"this version of searchforge makes another {name}")
        elif keys:
            found.append(f"{', '.join(f'{name}.{key}' for key in keys)} changed")
    return found


def _reason(config: Config, known: Sequence[Known], encoder: str | None, counts: dict[str, int]) -> str:
    if not known:
        return "there is no release of this workspace yet"
    changes = [f"{counts[key]:,} {key}" for key in ("added", "changed", "removed") if counts[key]]
    found = ([f"images {', '.join(changes)}"] if changes else []) + _changed_settings(config, known[0].release)
    return f"since release {known[0].release.id}: {'; '.join(found) or 'files were written again'}"


def _reason_for_nothing(held: Known) -> str:
    if not held.why_not_live:
        return f"release {held.release.id}, which is live, holds the corpus as it is"
    return (
        f"release {held.release.id} holds the corpus as it is and is not live: {held.why_not_live}; "
        f"`searchforge rollback --to {held.release.id}` makes it live"
    )


def _manifest(workspace: Workspace, release: Release) -> Manifest:
    return Manifest.model_validate(workspace.marker("embeddings", release.provenance["embeddings"]))


def _embedded_with(workspace: Workspace) -> list[str]:
    """Returns the encoders of the embedding runs, the latest first."""
    runs = [workspace.marker("embeddings", id) for id in workspace.ids("embeddings")]
    return [run["encoder"] for run in sorted(runs, key=lambda run: str(run.get("created", "")), reverse=True)]


def _same_contents(workspace: Workspace, one: Manifest, other: Manifest) -> bool:
    """Whether two runs hold the same items, whenever their files were written."""
    if one.id == other.id:
        return True
    return one.records == other.records and _contents(workspace, one) == _contents(workspace, other)


def _contents(workspace: Workspace, manifest: Manifest) -> int:
    """Returns a hash of all items that does not depend on their order: the sum of theirs."""
    hashes = (
        sha256_bytes(canonical_json([record.id, record.content_hash, record.metadata]))
        for record in read_shards(workspace, manifest)
    )
    return functools.reduce(lambda total, digest: (total + int(digest, 16)) % 2**256, hashes, 0)
