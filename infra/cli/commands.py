"""The commands of `searchforge`. Commands import heavy modules when they run, so that `--help` is fast."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from searchforge import __version__
from searchforge.console.options import Command, config_options, repeated_options, reports_errors, show

if TYPE_CHECKING:
    from searchforge.artifacts.manifest import Modality
    from searchforge.config import Config


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Turn a corpus of photos into a verified on-device search model."""


class DurationInDays(click.ParamType):
    """A duration such as 7d or 12h, converted to days."""

    name = "duration"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([dh])", str(value))
        if not match:
            self.fail(f"{value!r} is not a duration; expected a number of days or hours, for example 7d or 12h")
        return float(match.group(1)) / (24 if match.group(2) == "h" else 1)


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_DATA = (
    click.option(
        "--captions",
        "data__captions",
        multiple=True,
        help="File of captions: COCO JSON, CSV, TSV, JSONL or TFRecords; repeatable.",
    ),
    click.option("--images", "data__images", help="Folder of the captioned images."),
)
_TRAIN = (
    click.option(
        "--preset", "train__preset", type=click.Choice(["best", "recipe2022"]), help="Preset of the training settings."
    ),
    click.option("--workers", "train__workers", type=int, help="Number of Ray Train workers."),
    click.option("--ray-address", "train__ray_address", help="Address of a running Ray cluster; default: start one."),
)
_CORPUS = (
    click.option("--corpus", "corpus__source", help="Folder, glob or list of images; default: --images."),
    click.option(
        "--corpus-split", "corpus__splits", multiple=True, help="Embed only images of this split; repeatable."
    ),
)
_TEXTS = (
    click.option("--texts", "modality", flag_value="texts", default="images", help="Embed texts: lines, CSV or JSONL."),
    click.option("--encoder", help="Id of the encoder; default: the only one in the workspace."),
)
_BEAM = (
    click.option(
        "--reuse-from", "embed__reuse_from", help="Run whose embeddings to reuse: an id, auto or none; default: auto."
    ),
    click.option("--runner", "embed__runner", help="Name of a Beam runner."),
    click.option("--beam-option", "embed__beam_options", multiple=True, help="Option passed to Beam; repeatable."),
)
_INDEX = (
    click.option(
        "--index-preset",
        "index__preset",
        type=click.Choice(["best", "recipe2022"]),
        help="Preset of the index settings.",
    ),
    click.option("--recall-at-10", "index__recall_at_10", type=float, help="Recall to reach on held-out captions."),
    click.option("--max-index-size", "index__max_index_size", help="Maximum size of the index, for example 50MB."),
    click.option("--partitions", "index__partitions", type=int, help="Number of partitions; default: tuned."),
)
_PUBLISH = (click.option("--releases", "__releases", help="Folder or URL of the releases; default: the workspace."),)

_CHANNEL = (
    click.option("--channel", default="production", show_default=True, help="Release channel, for example staging."),
)


@main.command()
@_options(*_DATA, *_TRAIN, *_CORPUS, *_BEAM, *_INDEX, *_PUBLISH)
@reports_errors
@config_options
def run(config: Config, as_json: bool) -> None:
    """Train, embed, index, check and publish in one command."""
    from infra import api
    from infra.cli import summaries

    report = api.run(config)
    show(report, as_json, summaries.run(report))


@main.command()
@_options(*_DATA, *_TRAIN, *_CORPUS, *_BEAM, *_INDEX, *_PUBLISH)
@click.option("--channel", "reindex__channel", help="Release channel; default: production.")
@click.option(
    "--wait", "reindex__wait_seconds", type=float, metavar="SECONDS", help="Time to wait for a running re-index."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, without doing it.")
@click.option("--resume", is_flag=True, help="Run even after too many failures in a row.")
@click.option(
    "--trigger", default="command", show_default=True, help="What started the run, as recorded in the journal."
)
@reports_errors
@config_options
def reindex(config: Config, as_json: bool, dry_run: bool, resume: bool, trigger: str) -> None:
    """Update the live release if the corpus has changed.

    Embeds, indexes, checks and publishes only what has changed since the live release.
    """
    from infra import api
    from infra.cli import summaries

    if dry_run:
        plan = api.preview_reindex(config)
        show(plan.entry.model_dump(), as_json, plan.summary)
        return
    done = api.reindex(config, trigger=trigger, resume=resume)
    show(done.model_dump(), as_json, summaries.reindex(done))


@main.command()
@_options(*_DATA, *_TRAIN)
@reports_errors
@config_options
def train(config: Config, as_json: bool) -> None:
    """Train a dual encoder on a Ray cluster."""
    from infra import api
    from searchforge.artifacts.encoder import EncoderInfo

    report = api.train(config)
    from trainer.train import summary

    show(report, as_json, summary(EncoderInfo.model_validate(report)))


@main.command("eval")
@_options(*_DATA, *_TRAIN)
@click.option("--encoder", help="Id of the encoder; default: the one trained with these settings, or the only one.")
@click.option("--compare-forms", is_flag=True, help="Also measure every TFLite form of the text encoder.")
@reports_errors
@config_options
def evaluate(config: Config, as_json: bool, encoder: str | None, compare_forms: bool) -> None:
    """Measure retrieval on held-out captions and write a report."""
    from infra import api
    from searchforge.artifacts.workspace import Workspace

    report = api.evaluate(config, encoder, compare_forms)
    from trainer.evaluation.report import EvaluationReport, summary

    pages = Workspace(config.workspace).url("evaluations", report["id"])
    show(report, as_json, f"{summary(EvaluationReport.model_validate(report))}\n  reports: {pages}")


@main.command()
@_options(*_DATA, *_CORPUS, *_BEAM, *_TEXTS)
@reports_errors
@config_options
def embed(config: Config, as_json: bool, modality: Modality, encoder: str | None) -> None:
    """Embed a corpus into sharded TFRecords with a Beam job."""
    from infra import api
    from searchforge.artifacts.manifest import Manifest

    report = api.embed(config, encoder, modality)
    show(report, as_json, Manifest.model_validate(report).summary)


@main.command()
@_options(*_DATA, *_CORPUS, *_TEXTS)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Number of machines like this one."
)
@click.option("--sample", type=click.IntRange(1), default=256, show_default=True, help="Number of items to measure.")
@reports_errors
@config_options
def estimate(config: Config, as_json: bool, modality: Modality, encoder: str | None, workers: int, sample: int) -> None:
    """Estimate the time and size of embedding a corpus, from a sample."""
    from infra import api

    report = api.estimate(config, encoder, modality, workers, sample)
    from beam_jobs.estimate import summary

    show(report, as_json, summary(report))


@main.command()
@_options(*_BEAM)
@click.option("--embeddings", help="Id of the embedding run; default: the only one in the workspace.")
@reports_errors
@config_options
def compact(config: Config, as_json: bool, embeddings: str | None) -> None:
    """Copy the records of an incremental run into shards of its own."""
    from infra import api
    from searchforge.artifacts.manifest import Manifest

    report = api.compact(config, embeddings)
    show(report, as_json, Manifest.model_validate(report).summary)


@main.command()
@_options(*_INDEX)
@click.option("--embeddings", help="Id of the embedding run; default: the only one in the workspace.")
@reports_errors
@config_options
def index(config: Config, as_json: bool, embeddings: str | None) -> None:
    """Build the on-device index and pack it into both searchers."""
    from indexer.build import summary
    from infra import api

    report = api.index(config, embeddings)
    show(report, as_json, summary(report))


@main.command()
@_options(*_DATA)
@click.option("--searcher", help="Id of the searcher; default: the only one in the workspace.")
@reports_errors
@config_options
def check(config: Config, as_json: bool, searcher: str | None) -> None:
    """Check a searcher with the Task Library, as a phone would run it."""
    from infra import api
    from infra.releases.releases import require_passed
    from searchforge.artifacts.workspace import Workspace
    from serving_check.check import PAGE
    from serving_check.schema import Report, summary

    report = api.check(config, searcher)
    page = Workspace(config.workspace).url("checks", report["id"], PAGE)
    show(report, as_json, f"{summary(Report.model_validate(report))}\n  report: {page}")
    require_passed(report)


@main.command()
@_options(*_PUBLISH, *_CHANNEL)
@click.option("--check", "check_id", help="Id of the check; default: the only one in the workspace.")
@reports_errors
@config_options
def publish(config: Config, as_json: bool, check_id: str | None, channel: str) -> None:
    """Publish a searcher that passed its check and make it live."""
    from infra import api
    from infra.cli import summaries

    release = api.publish(config, check_id, channel)
    show(release, as_json, summaries.release(release))


@main.command()
@_options(*_PUBLISH, *_CHANNEL)
@click.option("--to", help="Id of the release; default: the previously live one.")
@reports_errors
@config_options
def rollback(config: Config, as_json: bool, to: str | None, channel: str) -> None:
    """Make an earlier release live again."""
    from infra import api
    from infra.cli import summaries

    release = api.rollback(config, to, channel)
    show(release, as_json, summaries.release(release))


@main.command()
@_options(*_PUBLISH)
@click.option("--from", "source", default="staging", show_default=True, help="Source channel.")
@click.option("--to", "target", default="production", show_default=True, help="Target channel.")
@click.option("--release", help="Id of the release; default: the source channel's live one.")
@reports_errors
@config_options
def promote(config: Config, as_json: bool, source: str, target: str, release: str | None) -> None:
    """Make the live release of one channel live in another channel."""
    from infra import api
    from infra.cli import summaries

    promoted = api.promote(config, source, target, release)
    show(promoted, as_json, summaries.release(promoted))


@main.command()
@_options(*_PUBLISH)
@reports_errors
@config_options
def releases(config: Config, as_json: bool) -> None:
    """List releases and refused publications, most recent first."""
    from infra import api
    from infra.cli import summaries

    found = api.releases(config)
    show(found, as_json, summaries.releases(found))


@main.command()
@_options(*_PUBLISH)
@click.option("--keep", "reindex__keep_releases", type=click.IntRange(1), help="Number of latest releases to keep.")
@click.option(
    "--min-age",
    "reindex__keep_days",
    type=DurationInDays(),
    help="Age below which releases are kept, for example 7d or 12h.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, without deleting it.")
@reports_errors
@config_options
def prune(config: Config, as_json: bool, dry_run: bool) -> None:
    """Delete old releases; keep live ones and the ones before them."""
    from infra import api
    from infra.cli import summaries

    pruned = api.prune(config, dry_run)
    show(pruned, as_json, summaries.pruned(pruned))


@main.command()
@_options(*_PUBLISH, *_CHANNEL)
@click.argument("query")
@click.option(
    "-k", "count", type=click.IntRange(1, 1000), default=10, show_default=True, help="Maximum number of hits."
)
@click.option("--release", help="Id of a release, or folder or URL of releases; default: the live one.")
@click.option("--open", "open_sheet", is_flag=True, help="Write a contact sheet of the hits and open it.")
@reports_errors
@config_options
def search(
    config: Config, as_json: bool, query: str, count: int, release: str | None, channel: str, open_sheet: bool
) -> None:
    """Search a release by a text or an image, with the Task Library.

    QUERY is a text, or the path of an image file.
    """
    from infra import api
    from infra.cli import summaries

    hits = api.search(config, query, count, release, channel)
    show(hits, as_json, summaries.hits(hits))
    if open_sheet:
        path = api.write_contact_sheet(config, [query], [hits], release, channel=channel)
        click.echo(f"contact sheet: {path}", err=True)
        click.launch(str(path))


@main.command()
@_options(*_PUBLISH)
@click.option("--release", "names", multiple=True, help="Release to serve, as for `search`; repeat to compare.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port on 127.0.0.1; 0 picks one."
)
@click.option("--workers", type=click.IntRange(1), help="Number of parallel queries; default: one per core.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@reports_errors
@config_options
def serve(
    config: Config, as_json: bool, names: tuple[str, ...], port: int, workers: int | None, open_page: bool
) -> None:
    """Serve a local web page for searching and comparing releases."""
    from infra.serve.server import serve as serve_releases

    def announce(url: str, releases: list[str]) -> None:
        if as_json:
            click.echo(json.dumps({"url": url, "releases": releases}))
        if open_page:
            click.launch(url)

    serve_releases(config, names, port, workers, on_ready=announce)


@main.command()
@_options(*_DATA, *_TRAIN, *_CORPUS, *_BEAM, *_INDEX, *_PUBLISH)
@click.option("--cron", "schedule__cron", help='Cron expression, for example "0 3 * * *" for daily at 3:00.')
@click.option("--timezone", "schedule__timezone", help="IANA time zone of the cron expression; default: UTC.")
@click.option(
    "--metrics-port", "schedule__metrics_port", type=int, help="Port on 127.0.0.1 that serves Prometheus metrics."
)
@reports_errors
@config_options
def schedule(config: Config, as_json: bool) -> None:
    """Run `reindex` at the times of a cron expression.

    Every run has its own process.
    """
    from infra.reindex import scheduler

    report = ["--json"] if as_json else []
    command = [sys.executable, "-m", "infra", "reindex", *repeated_options(), *report, "--trigger", "schedule"]
    scheduler.schedule(config, command)


@main.command()
@_options(*_PUBLISH)
@click.option("--list", "count", type=click.IntRange(1), default=10, show_default=True, help="Number of runs to show.")
@click.option("--lag", is_flag=True, help="List the corpus now to measure how far the index lags behind.")
@click.option("--check", "checks", is_flag=True, help="Exit with 1 if re-indexing has stopped or the index is too old.")
@click.option("--max-age", help="Maximum age of the index for --check, for example 26h.")
@click.option("--prometheus", is_flag=True, help="Print metrics in the Prometheus text format.")
@click.option("--output", type=click.Path(path_type=Path), help="File to which the metrics are written atomically.")
@reports_errors
@config_options
def status(
    config: Config,
    as_json: bool,
    count: int,
    lag: bool,
    checks: bool,
    max_age: str | None,
    prometheus: bool,
    output: Path | None,
) -> None:
    """Show the state of re-indexing: live releases, lag and runs."""
    from infra import api
    from infra.cli import summaries

    if output:
        api.write_metrics(config, output)
    elif prometheus:
        click.echo(api.metrics(config), nl=False)
    else:
        found = api.status(config, count, lag)
        show(found, as_json, summaries.status(found))
        if checks:
            api.require_healthy(found, max_age)


@main.command()
@click.option("--scenes", type=click.IntRange(100), default=2000, show_default=True, help="Number of images to draw.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random scenes.")
@reports_errors
@config_options
def demo(config: Config, as_json: bool, scenes: int, seed: int) -> None:
    """Draw a captioned corpus, run every stage on it, and search it."""
    from infra.cli import summaries
    from infra.demo import demo as demonstration

    report = demonstration.run_demo(config, scenes, seed)
    show(report, as_json, summaries.demo(report))


@main.command("fetch")
@click.argument("dataset", type=click.Choice(["coco2014", "coco2017"]))
@click.option("--folder", help="Target folder; default: the name of the dataset.")
@click.option("--only", type=click.Choice(["captions", "images"]), help="Fetch only the captions or only the images.")
@click.option("--split", type=click.Choice(["train", "val"]), help="Fetch only the images of this split.")
@click.option("--keep-archives", is_flag=True, help="Keep archives after unpacking.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@reports_errors
def fetch_command(
    dataset: str,
    folder: str | None,
    only: Literal["captions", "images"] | None,
    split: Literal["train", "val"] | None,
    keep_archives: bool,
    as_json: bool,
) -> None:
    """Download, verify and unpack the photos and captions of COCO."""
    from infra.datasets.coco import DATASETS
    from infra.datasets.fetch import fetch, summary

    target = Path(folder or dataset).expanduser().absolute()
    report = fetch(DATASETS[dataset], target, only, split, keep_archives)
    show(report, as_json, summary(report))


@main.command()
@reports_errors
@config_options
def doctor(config: Config, as_json: bool) -> None:
    """Check the environment and suggest a remedy for each problem."""
    from infra.cli import summaries
    from infra.cli.doctor import diagnose

    findings = diagnose(config.workspace)
    show(findings, as_json, summaries.findings(findings))
    if any(finding.status == "fault" for finding in findings):
        sys.exit(1)
