"""Commands of the pipeline: the single stages, all of them at once, and the data to run them on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from infra.cli.option_groups import (
    ALLOW_REMOVAL,
    BEAM,
    CORPUS,
    DATA,
    ENCODER,
    INDEX,
    PUBLISH,
    QUERIES,
    TEXTS,
    TRAIN,
    options,
)
from searchforge.console.options import config_options, reports_errors, show

if TYPE_CHECKING:
    from searchforge.artifacts.manifest import Modality
    from searchforge.config import Config


@click.command()
@options(*DATA, *QUERIES, *TRAIN, *ENCODER, *CORPUS, *BEAM, *INDEX, *PUBLISH)
@ALLOW_REMOVAL
@reports_errors
@config_options
def run(config: Config, as_json: bool, allow_removal: bool) -> None:
    """Train (or take `--encoder`), embed, index, check and publish."""
    from infra import api
    from infra.cli import summaries

    report = api.run(config, allow_removal)
    show(report, as_json, summaries.run(report))


@click.command()
@options(*DATA, *TRAIN)
@reports_errors
@config_options
def train(config: Config, as_json: bool) -> None:
    """Train a dual encoder on a Ray cluster."""
    from infra import api
    from searchforge.artifacts.encoder import EncoderInfo

    report = api.train(config)
    from trainer.train import summary

    show(report, as_json, summary(EncoderInfo.model_validate(report)))


@click.command("eval")
@options(*DATA, *TRAIN)
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


@click.command()
@options(*DATA, *CORPUS, *BEAM, *TEXTS)
@reports_errors
@config_options
def embed(config: Config, as_json: bool, modality: Modality, encoder: str | None) -> None:
    """Embed a corpus into sharded TFRecords with a Beam job."""
    from infra import api
    from searchforge.artifacts.manifest import Manifest

    report = api.embed(config, encoder, modality)
    show(report, as_json, Manifest.model_validate(report).summary)


@click.command()
@options(*DATA, *CORPUS, *TEXTS)
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


@click.command()
@options(*BEAM)
@click.option("--embeddings", help="Id of the embedding run; default: the only one in the workspace.")
@reports_errors
@config_options
def compact(config: Config, as_json: bool, embeddings: str | None) -> None:
    """Copy the records of an incremental run into shards of its own."""
    from infra import api
    from searchforge.artifacts.manifest import Manifest

    report = api.compact(config, embeddings)
    show(report, as_json, Manifest.model_validate(report).summary)


@click.command()
@options(*DATA, *QUERIES, *INDEX)
@click.option("--embeddings", help="Id of the embedding run; default: the only one in the workspace.")
@reports_errors
@config_options
def index(config: Config, as_json: bool, embeddings: str | None) -> None:
    """Build the on-device index and pack it into both searchers."""
    from infra import api

    report = api.index(config, embeddings)
    from indexer.build import summary

    show(report, as_json, summary(report))


@click.command()
@options(*DATA, *QUERIES)
@click.option("--searcher", help="Id of the searcher; default: the only one in the workspace.")
@ALLOW_REMOVAL
@reports_errors
@config_options
def check(config: Config, as_json: bool, searcher: str | None, allow_removal: bool) -> None:
    """Check a searcher with the Task Library, as a phone would run it."""
    from infra import api
    from infra.releases.releases import require_passed
    from searchforge.artifacts.workspace import Workspace
    from serving_check.check import PAGE
    from serving_check.schema import Report, summary

    report = api.check(config, searcher, allow_removal=allow_removal)
    page = Workspace(config.workspace).url("checks", report["id"], PAGE)
    show(report, as_json, f"{summary(Report.model_validate(report))}\n  report: {page}")
    require_passed(report)


@click.command("fetch")
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


@click.command()
@click.option("--scenes", type=click.IntRange(100), default=1600, show_default=True, help="Number of images to draw.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random scenes.")
@reports_errors
@config_options
def demo(config: Config, as_json: bool, scenes: int, seed: int) -> None:
    """Draw a captioned corpus, run every stage on it, and search it."""
    from infra.cli import summaries
    from infra.demo import demo as demonstration

    report = demonstration.run_demo(config, scenes, seed)
    show(report, as_json, summaries.demo(report))
