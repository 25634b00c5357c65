"""Embeds an image corpus: `python -m beam_jobs.embed_images`, or `embed_images()` from Python.

Options that are not its own go to Beam as they are, e.g. `--runner=FlinkRunner --flink_master=localhost:8081`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import apache_beam as beam
import click
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.corpus import Item, list_corpus, listing_digest
from beam_jobs.embed_shard import EmbedOptions, EmbedShard
from beam_jobs.shards import Shard, ShardReport, plan_shards, read_report, remove_leftovers
from searchforge import progress
from searchforge.captions import corpus_source, load_captions
from searchforge.cli import config_options, import_quietly, reports_errors, show
from searchforge.config import Config
from searchforge.encoder import EncoderInfo
from searchforge.errors import JobError, SearchforgeError, UsageError
from searchforge.hashing import content_id
from searchforge.manifest import Manifest, ShardInfo
from searchforge.workspace import MARKERS, Workspace

_POLL_SECONDS = 2.0
_IMAGES_PER_SECOND = 120  # of the default tower on 2 cores, for the estimate only
_LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""What DirectRunner ends up with; asked for by name, because DirectRunner first tries to download another one."""


def embed_images(config: Config, encoder: str) -> Manifest:
    """Embeds the corpus of `config` with an encoder of its workspace. A finished run is found, not repeated.

    Args:
      encoder: id of a committed encoder bundle.

    Returns:
      The manifest, which lies beside its shards in embeddings/<id>/.

    Raises:
      UsageError: the corpus is empty, names an id twice, or the encoder does not exist.
      JobError: the job failed, or more than `corpus.max_reject_fraction` of the inputs were rejected.
    """
    workspace = Workspace(config.workspace)
    info = EncoderInfo.model_validate(workspace.marker("encoders", encoder))
    items = _select(list_corpus(corpus_source(config)), config)
    shards = plan_shards(items, config.embed.shards)
    identity = {
        "fingerprint": info.fingerprint,
        "listing": listing_digest(items),
        "shards": len(shards),
        "limits": [config.corpus.max_bytes, config.corpus.max_pixels],
    }
    run = content_id(identity)
    if workspace.committed("embeddings", run):
        progress.say(f"embeddings/{run} is complete")
        return Manifest.model_validate(workspace.marker("embeddings", run))
    options = EmbedOptions(
        workspace=workspace.root,
        encoder=encoder,
        folder=f"embeddings/{run}",
        preprocessing=info.preprocessing,
        batch_size=config.embed.batch_size,
        max_bytes=config.corpus.max_bytes,
        max_pixels=config.corpus.max_pixels,
    )
    start = time.monotonic()
    progress.say(
        f"embedding {len(items)} items in {len(shards)} shards on {config.embed.runner} into "
        f"{workspace.url('embeddings', run)}; about {5 + len(items) / _IMAGES_PER_SECOND:.0f} s on 2 cores"
    )
    _run_pipeline(shards, options, config, workspace)
    reports = [_require_report(workspace, options.folder, shard) for shard in shards]
    manifest = _manifest(run, info, config, items, reports, time.monotonic() - start)
    if not manifest.embedded or manifest.rejected > config.corpus.max_reject_fraction * manifest.inputs:
        for shard, report in zip(shards, reports, strict=True):
            if report.rejects:  # the cause may be mended: the next run tries these shards again
                workspace.storage.delete(f"{options.folder}/{shard.name('done', 'json')}")
        raise _too_many_rejects(manifest, config.corpus.max_reject_fraction, workspace.url("embeddings", run))
    marker = MARKERS["embeddings"]
    if workspace.committed("embeddings", run):  # another process was quicker
        return Manifest.model_validate(workspace.marker("embeddings", run))
    workspace.storage.write(f"{options.folder}/{marker}", manifest.model_dump_json(indent=2).encode())
    keep = (marker, *(shard.name for shard in manifest.shards), *manifest.rejects)
    remove_leftovers(workspace.storage, options.folder, keep)
    return manifest


def _select(items: list[Item], config: Config) -> list[Item]:
    """Keeps the items of `corpus.splits`, where those are given."""
    if not config.corpus.splits:
        return items
    images = load_captions(config).images
    wanted = {image.id for image in images if image.split in config.corpus.splits}
    selected = [item for item in items if item.id in wanted]
    if not selected:
        known = sorted({str(image.split) for image in images})
        raise UsageError(
            f"no item of corpus {corpus_source(config)} is in split {', '.join(config.corpus.splits)}; "
            f"the captions hold the splits {', '.join(known)}"
        )
    return selected


def _run_pipeline(shards: Sequence[Shard], options: EmbedOptions, config: Config, workspace: Workspace) -> None:
    runner = _LOCAL_RUNNER if config.embed.runner == "DirectRunner" else config.embed.runner
    arguments = [f"--runner={runner}", *config.embed.beam_options]
    try:
        with (
            _shown_progress(shards, options.folder, workspace),
            beam.Pipeline(options=PipelineOptions(arguments)) as pipeline,
        ):
            _ = (
                pipeline
                | "Shards" >> beam.Create(shards)
                | "Spread" >> beam.Reshuffle()
                | "Embed" >> beam.ParDo(EmbedShard(options))
            )
    except SearchforgeError:
        raise
    except Exception as error:  # every runner has its own; none of them concerns the user's shell
        raise JobError(
            f"the Beam job failed: {error}\n"
            f"Finished shards are kept in {workspace.root}/{options.folder}; run the command again"
        ) from error


@contextmanager
def _shown_progress(shards: Sequence[Shard], folder: str, workspace: Workspace) -> Iterator[None]:
    """Watches the folder for finished shards, which works for every runner."""
    done = threading.Event()
    with progress.track("embed", sum(len(shard.items) for shard in shards)) as advance:

        def watch() -> None:
            waiting = list(shards)
            finished = False
            while not finished:
                finished = done.wait(_POLL_SECONDS)
                try:
                    files = set(workspace.storage.files(folder))
                except (SearchforgeError, OSError):  # progress is no reason to fail
                    continue
                for shard in [shard for shard in waiting if shard.name("done", "json") in files]:
                    waiting.remove(shard)
                    advance(len(shard.items))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _require_report(workspace: Workspace, folder: str, shard: Shard) -> ShardReport:
    report = read_report(workspace.storage, folder, shard)
    if report is None:
        raise JobError(
            f"{shard.name('data', 'tfrecord')} was not written to {workspace.root}/{folder}; run the command again"
        )
    return report


def _too_many_rejects(manifest: Manifest, allowed: float, folder: str) -> JobError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(manifest.rejected_by_reason).most_common())
    return JobError(
        f"{manifest.rejected} of {manifest.inputs} inputs were rejected ({reasons}), allowed are {allowed:.0%} "
        f"(corpus.max_reject_fraction) and at least one must remain; each is listed in rejects-*.jsonl in {folder}"
    )


def _manifest(
    run: str,
    info: EncoderInfo,
    config: Config,
    items: Sequence[Item],
    reports: Sequence[ShardReport],
    seconds: float,
) -> Manifest:
    rejected: Counter[str] = Counter()
    for report in reports:
        rejected.update(report.rejected)
    return Manifest(
        id=run,
        encoder=info.id,
        fingerprint=info.fingerprint,
        preprocessing=info.preprocessing,
        dim=info.dim,
        source=corpus_source(config),
        inputs=len(items),
        embedded=sum(report.shard["count"] for report in reports),
        reused=0,
        rejected=rejected.total(),
        rejected_by_reason=dict(sorted(rejected.items())),
        shards=tuple(ShardInfo.model_validate(report.shard) for report in reports),
        rejects=tuple(report.rejects for report in reports if report.rejects),
        seconds=round(seconds, 3),
    )


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--captions", "data__captions", multiple=True, help="Captions files that name the splits.")
@click.option("--images", "data__images", help="Folder of the captioned images.")
@click.option("--corpus", "corpus__source", help="Folder, glob, or text file of paths or URIs.")
@click.option("--corpus-split", "corpus__splits", multiple=True, help="Only images of this split.")
@click.option("--encoder", required=True, help="Id of the encoder bundle.")
@click.option("--shards", "embed__shards", type=int, help="Number of output shards.")
@click.option("--batch-size", "embed__batch_size", type=int, help="Images a call of the model.")
@click.option("--runner", "embed__runner", help="Any Beam runner.")
@click.argument("embed__beam_options", nargs=-1, type=click.UNPROCESSED)
@reports_errors
@config_options
def main(config: Config, as_json: bool, encoder: str) -> None:
    """Embeds an image corpus into sharded TFRecords. Further options go to Beam as they are."""
    import_quietly("tensorflow")
    manifest = embed_images(config, encoder)
    show(manifest.model_dump(), as_json, manifest.summary)


if __name__ == "__main__":
    main()
