"""Options that several commands share, in groups."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from searchforge.console.options import Command


def options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Returns a decorator that adds options to a command, in the order in which `--help` lists them."""

    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


class DurationInDays(click.ParamType):
    """A duration such as 7d or 12h, converted to days."""

    name = "duration"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([dh])", str(value))
        if not match:
            self.fail(f"{value!r} is not a duration; expected a number of days or hours, for example 7d or 12h")
        return float(match.group(1)) / (24 if match.group(2) == "h" else 1)


DATA = (
    click.option(
        "--captions",
        "data__captions",
        multiple=True,
        help="File of captions: COCO JSON, CSV, TSV, JSONL or TFRecords; repeatable.",
    ),
    click.option("--images", "data__images", help="Folder of the captioned images."),
)
QUERIES = (
    click.option(
        "--queries",
        "data__queries",
        help="Query log: one query a line, a tab and its count allowed; used where there are no captions.",
    ),
)
TRAIN = (
    click.option(
        "--preset", "train__preset", type=click.Choice(["best", "recipe2022"]), help="Preset of the training settings."
    ),
    click.option("--workers", "train__workers", type=int, help="Number of Ray Train workers."),
    click.option("--ray-address", "train__ray_address", help="Address of a running Ray cluster; default: start one."),
)
ENCODER = (
    click.option("--encoder", "__encoder", help="Id of an encoder to use, instead of training one (`encoder import`)."),
)
CORPUS = (
    click.option("--corpus", "corpus__source", help="Folder, glob or list of images; default: --images."),
    click.option(
        "--corpus-split", "corpus__splits", multiple=True, help="Embed only images of this split; repeatable."
    ),
)
TEXTS = (
    click.option("--texts", "modality", flag_value="texts", default="images", help="Embed texts: lines, CSV or JSONL."),
    click.option("--encoder", help="Id of the encoder; default: the only one in the workspace."),
)
BEAM = (
    click.option(
        "--reuse-from", "embed__reuse_from", help="Run whose embeddings to reuse: an id, auto or none; default: auto."
    ),
    click.option("--runner", "embed__runner", help="Name of a Beam runner."),
    click.option("--beam-option", "embed__beam_options", multiple=True, help="Option passed to Beam; repeatable."),
)
INDEX = (
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
PUBLISH = (click.option("--releases", "__releases", help="Folder or URL of the releases; default: the workspace."),)

CHANNEL = (
    click.option("--channel", default="production", show_default=True, help="Release channel, for example staging."),
)
ALLOW_REMOVAL = click.option(
    "--allow-removal",
    is_flag=True,
    help="Let this run publish fewer items than check.max_items_drop allows.",
)
