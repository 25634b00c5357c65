"""Commands that import, list and describe encoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchforge.console.options import answers_soon, config_options, reports_errors, show

if TYPE_CHECKING:
    from searchforge.config import Config

_FILE = click.Path(path_type=Path)


@click.group()
def encoder() -> None:
    """Import, list and describe encoders."""


@encoder.command("import")
@click.option("--text", type=_FILE, help="TFLite file of the text encoder.")
@click.option("--image", type=_FILE, help="TFLite file of the image encoder.")
@click.option("--vocabulary", type=_FILE, help="Vocabulary of the text encoder, if its metadata has none.")
@click.option("--regex", help="Delimiters between tokens, for a text encoder with one input of token ids.")
@click.option(
    "--preprocessing",
    help="Preprocessing of the image encoder, if its metadata does not state it: "
    "'decode|resize(224,224,bilinear)|scale(-1,1)'.",
)
@click.option("--text-output", help="Name of the output with the embedding, if the text encoder has several.")
@click.option("--image-output", help="Name of the output with the embedding, if the image encoder has several.")
@click.option("--license", help="License of the encoder; default: that of the metadata.")
@reports_errors
@config_options
def import_command(
    config: Config,
    as_json: bool,
    text: Path | None,
    image: Path | None,
    vocabulary: Path | None,
    regex: str | None,
    preprocessing: str | None,
    text_output: str | None,
    image_output: str | None,
    license: str | None,
) -> None:
    """Import TFLite encoders of texts, images or both.

    They are run with the Task Library before anything is stored.
    """
    from infra import api
    from infra.cli import summaries
    from trainer.importing.requirements import EncoderFiles

    files = EncoderFiles(text, image, vocabulary, regex, preprocessing, text_output, image_output, license)
    info = api.import_encoder(config, files)
    show(info, as_json, summaries.encoder(info))


@encoder.command("list")
@reports_errors
@answers_soon
@config_options
def list_command(config: Config, as_json: bool) -> None:
    """List the encoders of the workspace."""
    from infra import api
    from infra.cli import summaries

    found = api.encoders(config)
    none = f"workspace {config.workspace} has no encoders; run `searchforge train` or `searchforge encoder import`"
    show(found, as_json, "\n".join(map(summaries.encoder, found)) or none)


@encoder.command("show")
@click.argument("id")
@reports_errors
@answers_soon
@config_options
def show_command(config: Config, as_json: bool, id: str) -> None:
    """Describe an encoder."""
    from infra import api
    from infra.cli import summaries

    (info,) = api.encoders(config, id)
    show(info, as_json, summaries.encoder(info))
