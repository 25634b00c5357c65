"""Command line shared by the image and text embedding jobs."""

from __future__ import annotations

import click

from searchforge.artifacts.manifest import Modality
from searchforge.config import Config
from searchforge.console.options import config_options, reports_errors, show
from searchforge.native_output import import_quietly


def embed_command(modality: Modality, help: str) -> click.Command:
    """Returns the command that embeds a corpus; options it does not know are passed to Beam unchanged."""

    @reports_errors
    @config_options
    def main(config: Config, as_json: bool, encoder: str) -> None:
        import_quietly("apache_beam")
        from beam_jobs.embed import embed

        manifest = embed(config, encoder, modality)
        show(manifest.model_dump(), as_json, manifest.summary)

    for decorate in (
        click.argument("embed__beam_options", nargs=-1, type=click.UNPROCESSED),
        click.option("--runner", "embed__runner", help="Name of a Beam runner."),
        click.option("--reuse-from", "embed__reuse_from", help="Run whose embeddings to reuse: an id, auto or none."),
        click.option("--shards", "embed__shards", type=int, help="Number of output shards."),
        click.option("--encoder", required=True, help="Id of the encoder bundle."),
        click.option("--corpus-split", "corpus__splits", multiple=True, help="Embed only images of this split."),
        click.option("--corpus", "corpus__source", help="Folder, glob, archive or list; local or gs://."),
        click.option("--images", "data__images", help="Folder of the captioned images."),
        click.option("--captions", "data__captions", multiple=True, help="Captions files that define the splits."),
    ):
        main = decorate(main)
    return click.command(help=help, context_settings={"ignore_unknown_options": True})(main)
