"""Command line of `python -m trainer`, which trains an encoder on captioned images."""

from __future__ import annotations

import click

from searchforge.config import Config
from searchforge.console.options import config_options, reports_errors, show
from searchforge.native_output import import_quietly


@click.command()
@click.option(
    "--captions",
    "data__captions",
    multiple=True,
    help="Captions file: COCO JSON, CSV, TSV, JSONL or TFRecords. Repeatable.",
)
@click.option("--images", "data__images", help="Folder that the captions' file names are relative to.")
@click.option(
    "--preset", "train__preset", type=click.Choice(["best", "recipe2022"]), help="Preset of training settings."
)
@click.option(
    "--image-tower",
    "train__image_tower",
    help="Image tower: pypi:efficientnet-lite0, hub:<handle>, saved_model:<folder> or keras:<name>@<file>.",
)
@click.option(
    "--text-tower", "train__text_tower", help="Text tower: pypi:minilm-l6, hub:<handle> or saved_model:<folder>."
)
@click.option("--epochs", "train__epochs", type=int, help="Number of epochs for the heads.")
@click.option("--workers", "train__workers", type=int, help="Number of Ray Train workers.")
@click.option("--ray-address", "train__ray_address", help="Address of a running Ray cluster; default: start one.")
@reports_errors
@config_options
def main(config: Config, as_json: bool) -> None:
    """Train a dual encoder on captioned images and commit its bundle to the workspace."""
    import_quietly("tensorflow")
    from trainer.train import summary, train

    info = train(config)
    show(info.model_dump(), as_json, summary(info))


if __name__ == "__main__":
    main()
