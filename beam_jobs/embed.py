"""Runs an embedding job: lists the corpus, plans what cannot be reused, embeds it with Beam, commits the manifest."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from beam_jobs.corpus.corpus import list_images, list_texts
from beam_jobs.corpus.items import Item
from beam_jobs.corpus.patterns import Exclusion
from beam_jobs.embedding.embedder import EmbedOptions
from beam_jobs.embedding.models import choose_backend
from beam_jobs.embedding.pipeline import run_pipeline, threads_per_worker
from beam_jobs.planning import plan as planning
from beam_jobs.planning.distributions import Distribution
from beam_jobs.planning.listing import CorpusListing
from beam_jobs.planning.plan import EmbedPlan
from beam_jobs.planning.shards import ShardReport, read_report, rejected_by_reason, remove_temporary_files
from searchforge import progress
from searchforge.artifacts.encoder import EncoderInfo
from searchforge.artifacts.manifest import METADATA_ERRORS, Manifest, Modality, ShardInfo, describe_reasons
from searchforge.artifacts.workspace import MARKERS, Workspace
from searchforge.captions.dataset import corpus_source, load_captions
from searchforge.config import Config
from searchforge.errors import JobError, UsageError
from searchforge.hashing import canonical_json, content_id

logger = logging.getLogger(__name__)

REPORT = "report.json"
_MARKER = MARKERS["embeddings"]


def embed(config: Config, encoder: str, modality: Modality, listing: CorpusListing | None = None) -> Manifest:
    """Embeds the corpus of `config` with an encoder from its workspace, or returns the finished run that did.

    Embeddings that an earlier run made with the same encoder are reused (see `embed.reuse_from`).

    Args:
      encoder: Id of a committed encoder bundle.
      listing: Listing of the corpus, filled from `list_corpus`, which this call consumes. Default: lists the corpus.

    Returns:
      The manifest, which is stored with its shards in embeddings/<id>/.

    Raises:
      UsageError: The corpus is empty, or the encoder or the base run does not exist.
      JobError: The job failed, or more than `corpus.max_reject_fraction` of the inputs were rejected.
    """
    run = _EmbedRun(config, encoder, modality)
    with contextlib.ExitStack() as stack:
        if listing is None:
            listing = stack.enter_context(CorpusListing())
            listing.add(list_corpus(config, modality))
        digest = run.digest_of(listing)
        earlier = run.earlier_runs()
        base = run.choose_base(earlier)
        id = content_id([digest, config.embed.shards])
        if finished := _latest_with(digest, earlier):
            if not finished.retryable:
                logger.info(f"embeddings/{finished.id} is complete")
                return finished
            unread = f"{finished.retryable} of {finished.inputs} items"
            logger.info(f"{unread} could not be read for embeddings/{finished.id}, and are tried again")
            id, base = content_id([id, "retry", finished.id]), finished
        plan = _resumable_plan(run.workspace, id, config, base)
        if plan is None:
            plan = planning.write(
                listing,
                run.workspace,
                _folder(id),
                base,
                source=corpus_source(config),
                shards=config.embed.shards,
                max_bytes=config.corpus.max_bytes,
                max_dead_fraction=config.embed.max_dead_fraction,
            )
    return run.execute(id, digest, plan, retried=finished)


def compact(config: Config, embeddings: str) -> Manifest:
    """Copies the live records of a run, which may refer to shards of many earlier runs, into a run of its own.

    Raises:
      UsageError: The run does not exist.
      JobError: The shards of the run are missing or damaged, or the job failed.
    """
    workspace = Workspace(config.workspace)
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    if not any(shard.run or shard.dead for shard in manifest.shards):
        logger.info(f"embeddings/{embeddings} is compact")
        return manifest
    run = _EmbedRun(config, manifest.encoder, manifest.modality, backend=manifest.backend)
    id = content_id(["compact", embeddings, config.embed.shards])
    if workspace.committed("embeddings", id):
        logger.info(f"embeddings/{id} is complete")
        return Manifest.model_validate(workspace.marker("embeddings", id))
    plan = planning.read(workspace, _folder(id))
    if plan is None:
        with CorpusListing() as listing:
            plan = planning.write_compaction(listing, workspace, _folder(id), manifest, shards=config.embed.shards)
    return run.execute(id, manifest.digest, plan, compacted=manifest)


def finished_run(config: Config, encoder: str, modality: Modality, listing: CorpusListing) -> Manifest | None:
    """Returns the finished run of the listed corpus, or None; `embed` tries its retryable rejects again.

    Args:
      encoder: Id of a committed encoder bundle.
      listing: Listing of the corpus; it is not changed.
    """
    run = _EmbedRun(config, encoder, modality)
    digest = run.digest_of(listing)
    return _latest_with(digest, run.earlier_runs())


def list_corpus(config: Config, modality: Modality) -> Iterator[Item]:
    """Yields the items of `corpus.source` in the splits `corpus.splits`, and logs how many are left out.

    Raises:
      UsageError: There are no such items.
    """
    source = corpus_source(config)
    exclusion = Exclusion(config.corpus.exclude)
    items: Iterable[Item] = (list_images if modality == "images" else list_texts)(source, exclusion)
    selected = None
    if config.corpus.splits:
        images = load_captions(config).images
        selected = {image.id for image in images if image.split in config.corpus.splits}
        known = ", ".join(sorted({str(image.split) for image in images}))
    listed = kept = 0
    for item in progress.counted("listed", items):
        listed += 1
        if selected is None or item.id in selected:
            kept += 1
            yield item
    if exclusion.count:
        left_out = f"{exclusion.count} files and folders are left out, such as {exclusion.example}"
        logger.info(f"corpus: {left_out} (corpus.exclude)")
    if kept < listed:
        logger.info(f"corpus: {listed - kept} of {listed} {modality} are in other splits (corpus.splits)")
    if not listed:
        why = ": all of it is left out by corpus.exclude" if exclusion.count else "; check the path"
        raise UsageError(f"corpus {source} is empty{why}")
    if not kept:
        raise UsageError(
            f"no item of corpus {source} is in split {', '.join(config.corpus.splits)}; "
            f"the captions define the splits {known}"
        )


class EmbedMethod:
    """Everything that determines an input's embedding: encoder, backend and limits.

    Runs can reuse each other's embeddings if the `digest` of their methods is the same.
    """

    def __init__(self, config: Config, encoder: str, modality: Modality, backend: str | None = None) -> None:
        self.config, self.modality = config, modality
        self.workspace = Workspace(config.workspace)
        self.bundle = EncoderInfo.model_validate(self.workspace.marker("encoders", encoder))
        self.backend = choose_backend(backend or config.embed.backend, modality, self.bundle)
        self.digest = content_id(
            {
                "fingerprint": self.bundle.fingerprint,
                "modality": modality,
                "backend": self.backend,
                "limits": [config.corpus.max_bytes, config.corpus.max_pixels],
            }
        )

    def options(self, folder: str) -> EmbedOptions:
        """Returns the workers' options for embedding into a folder of the workspace."""
        return EmbedOptions(
            workspace=self.workspace.root,
            encoder=self.bundle.id,
            folder=folder,
            modality=self.modality,
            backend=self.backend,
            preprocessing=self.bundle.preprocessing,
            threads=threads_per_worker(self.config.embed),
            batch_size=self.config.embed.batch_size,
            max_bytes=self.config.corpus.max_bytes,
            max_pixels=self.config.corpus.max_pixels,
        )


class _EmbedRun(EmbedMethod):
    """One embedding run, from choosing its base to committing its manifest."""

    def __init__(self, config: Config, encoder: str, modality: Modality, backend: str | None = None) -> None:
        super().__init__(config, encoder, modality, backend)
        self._start = time.monotonic()

    def digest_of(self, listing: CorpusListing) -> str:
        """Returns the hash that identifies the result of embedding the listed corpus with this method."""
        return content_id([self.digest, listing.digest()])

    def earlier_runs(self) -> list[Manifest]:
        """Returns the finished runs that used the same method, oldest first."""
        found = []
        for id in self.workspace.ids("embeddings"):
            with contextlib.suppress(ValueError):  # written by another version
                found.append(Manifest.model_validate(self.workspace.marker("embeddings", id)))
        return sorted((one for one in found if one.method == self.digest), key=lambda one: (one.created, one.id))

    def choose_base(self, earlier: Sequence[Manifest]) -> Manifest | None:
        """Returns the run to reuse: the configured one, else the latest of this corpus, else the latest of any."""
        requested = self.config.embed.reuse_from
        if requested == "none":
            return None
        if requested != "auto":
            found = {manifest.id: manifest for manifest in earlier}.get(requested)
            if found is None:
                self.workspace.marker("embeddings", requested)  # raises if the run does not exist
                raise UsageError(
                    f"embeddings {requested} cannot be reused: they were made by another encoder or backend, or under "
                    f"other corpus limits; expected embeddings of encoder {self.bundle.fingerprint} by {self.backend} "
                    "under the configured limits"
                )
            return found
        source = corpus_source(self.config)
        same_source = [manifest for manifest in earlier if manifest.source == source]
        return next(reversed(same_source or list(earlier)), None)

    def execute(
        self,
        id: str,
        digest: str,
        plan: EmbedPlan,
        compacted: Manifest | None = None,
        retried: Manifest | None = None,
    ) -> Manifest:
        """Executes the plan and commits the manifest, or returns that of the process that finished the same run first.

        Args:
          compacted: The run that the plan compacts, if any.
          retried: The run of the same corpus whose retryable rejects the plan tries again, if any. It is returned if
            none of them can be embedded, and this run leaves nothing behind.
        """
        try:
            return self._execute(id, digest, plan, compacted, retried)
        except (JobError, FileNotFoundError):
            # A process that finishes first deletes the plan and the other files that this one reads and writes.
            if self.workspace.committed("embeddings", id):
                return self._committed(id)
            if retried and planning.read(self.workspace, _folder(id)) is None:
                return retried
            raise

    def _execute(
        self, id: str, digest: str, plan: EmbedPlan, compacted: Manifest | None, retried: Manifest | None
    ) -> Manifest:
        config, workspace, folder = self.config, self.workspace, _folder(id)
        options = self.options(folder)
        kept = plan.inputs - sum(plan.sizes) - (compacted.rejected if compacted else 0)
        logger.info(
            f"{plan.inputs} {self.modality} listed: {kept} unchanged, {sum(plan.sizes)} to process in "
            f"{len(plan.sizes)} shards on {config.embed.runner} with {self.backend}, "
            f"into {workspace.url('embeddings', id)}"
        )
        written = self._run(plan, options)
        manifest = self._manifest(id, digest, plan, written, kept, compacted)
        if retried and manifest.records == retried.records:
            unread = f"{manifest.retryable} of {manifest.inputs} items"
            logger.info(f"  {unread} still cannot be read; embeddings/{retried.id} stays in use")
            workspace.storage.delete_folder(folder)
            return retried
        self._require_few_rejects(manifest, plan, written)
        if workspace.committed("embeddings", id):  # another process finished first
            return self._committed(id)
        if compacted:
            for name in (*compacted.rejects, *((METADATA_ERRORS,) if compacted.metadata_errors else ())):
                workspace.storage.write(f"{folder}/{name}", workspace.storage.read(f"{_folder(compacted.id)}/{name}"))
        report = _report(manifest, written, options, config)
        workspace.storage.write(f"{folder}/{REPORT}", canonical_json(report))
        workspace.storage.create(f"{folder}/{_MARKER}", manifest.model_dump_json(indent=2).encode())
        return self._committed(id)

    def _run(self, plan: EmbedPlan, options: EmbedOptions) -> list[ShardReport]:
        """Embeds the unfinished shards of the plan; returns the report of each shard."""
        storage = self.workspace.storage
        if plan.sizes:
            run_pipeline(plan, options, self.config.embed, storage)
        reports = [read_report(storage, options.folder, shard) for shard in plan.shards]
        written = [report for report in reports if report is not None]
        if len(written) < len(reports):
            raise JobError(
                f"{len(reports) - len(written)} of {len(reports)} shards were not written to "
                f"{storage.root}/{options.folder}; run the command again"
            )
        return written

    def _committed(self, id: str) -> Manifest:
        """Returns the manifest of a committed run, and deletes the other files in its folder."""
        manifest = Manifest.model_validate(self.workspace.marker("embeddings", id))
        own = (shard.name for shard in manifest.shards if not shard.run)
        kept = (_MARKER, REPORT, METADATA_ERRORS, *own, *manifest.rejects)
        remove_temporary_files(self.workspace.storage, _folder(id), kept)
        return manifest

    def _manifest(
        self,
        id: str,
        digest: str,
        plan: EmbedPlan,
        reports: Sequence[ShardReport],
        kept: int,
        compacted: Manifest | None,
    ) -> Manifest:
        rejected = compacted.rejected_by_reason if compacted else rejected_by_reason(reports)
        rejects = compacted.rejects if compacted else tuple(report.rejects for report in reports if report.rejects)
        return Manifest(
            id=id,
            modality=self.modality,
            encoder=self.bundle.id,
            fingerprint=self.bundle.fingerprint,
            preprocessing=self.bundle.preprocessing,
            backend=self.backend,
            dim=self.bundle.dim,
            source=compacted.source if compacted else corpus_source(self.config),
            method=compacted.method if compacted else self.digest,
            digest=digest,
            base=plan.base,
            inputs=plan.inputs,
            embedded=sum(report.embedded for report in reports),
            reused=kept + sum(report.reused for report in reports),
            rejected=sum(rejected.values()),
            rejected_by_reason=rejected,
            retryable=compacted.retryable if compacted else sum(report.retryable for report in reports),
            shards=(*plan.carried, *(ShardInfo.model_validate(report.shard) for report in reports)),
            rejects=rejects,
            metadata_errors=compacted.metadata_errors if compacted else plan.metadata_errors,
            created=datetime.now(timezone.utc).isoformat(),
            seconds=round(time.monotonic() - self._start, 3),
        )

    def _require_few_rejects(self, manifest: Manifest, plan: EmbedPlan, reports: Sequence[ShardReport]) -> None:
        """Raises JobError if too many items were rejected; the next run processes their shards again."""
        corpus = self.config.corpus
        reasons = describe_reasons(manifest.rejected_by_reason)
        listed = f"rejects-*.jsonl in {self.workspace.url('embeddings', manifest.id)} lists each of them"
        fault = ""
        if not manifest.records or manifest.rejected > corpus.max_reject_fraction * manifest.inputs:
            fault = (
                f"{manifest.rejected} of {manifest.inputs} inputs were rejected ({reasons}); at most "
                f"{corpus.max_reject_fraction:.0%} (corpus.max_reject_fraction) may be, and at least one must remain; "
                f"{listed}"
            )
        elif manifest.retryable > max(1, corpus.max_unread_fraction * manifest.inputs):
            fault = (
                f"{manifest.retryable} of {manifest.inputs} inputs cannot be read at the moment ({reasons}); at most "
                f"{corpus.max_unread_fraction:.0%} (corpus.max_unread_fraction) may be missing or unreadable: check "
                f"that folders are mounted and buckets can be reached, and run the command again; {listed}"
            )
        if not fault:
            return
        for shard, report in zip(plan.shards, reports, strict=True):
            if report.rejects:  # the cause may be fixed by then
                self.workspace.storage.delete(f"{_folder(manifest.id)}/{shard.report_name}")
        raise JobError(fault)


def _latest_with(digest: str, runs: Sequence[Manifest]) -> Manifest | None:
    """Returns the latest of the runs, which are sorted by age, with this digest; None if there is none."""
    return next((manifest for manifest in reversed(runs) if manifest.digest == digest), None)


def _resumable_plan(workspace: Workspace, id: str, config: Config, base: Manifest | None) -> EmbedPlan | None:
    """Returns the plan of an interrupted run, or None if there is none or it reuses a base other than required."""
    plan = planning.read(workspace, _folder(id))
    if plan is None or config.embed.reuse_from == "auto":
        return plan
    return plan if plan.base == (base.id if base else None) else None


def _folder(id: str) -> str:
    return f"embeddings/{id}"


def _report(
    manifest: Manifest, reports: Sequence[ShardReport], options: EmbedOptions, config: Config
) -> dict[str, Any]:
    """Returns the content of report.json: totals and distributions over the job's shards."""
    counts = ("inputs", "embedded", "reused", "rejected", "rejected_by_reason", "metadata_errors")
    copied = ("id", "modality", "backend", "base", *counts)
    distributions = {
        "batch_size": Distribution.merge(report.batch_size for report in reports),
        "batch_ms": Distribution.merge(report.batch_ms for report in reports),
        "shard_seconds": Distribution.from_values(report.seconds for report in reports),
    }
    return {
        **{name: getattr(manifest, name) for name in copied},
        "bytes_read": sum(report.bytes_read for report in reports),
        "bytes_written": sum(report.shard["bytes"] for report in reports),
        **{name: {**asdict(value), "mean": value.mean} for name, value in distributions.items()},
        "runner": config.embed.runner,
        "threads_per_worker": options.threads or None,
        "seconds": manifest.seconds,
    }
