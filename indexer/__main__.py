"""`python -m indexer`: builds a searcher from an embedding run, as a job on its own."""

from __future__ import annotations

import click

from searchforge.cli import config_options, reports_errors, show
from searchforge.config import Config


@click.command()
@click.option("--embeddings", required=True, help="Id of the embedding run to index.")
@click.option("--encoder", help="Id of the encoder bundle; by default the one that made the embeddings.")
@click.option("--preset", "index__preset", type=click.Choice(["best", "recipe2022"]), help="Sets what is not given.")
@click.option("--partitions", "index__partitions", type=int, help="About the square root of the corpus by default.")
@click.option("--partitions-searched", "index__partitions_searched", type=int, help="By a query.")
@click.option("--dims-per-block", "index__dims_per_block", type=int, help="Dimensions that share one byte of a code.")
@reports_errors
@config_options
def main(config: Config, embeddings: str, encoder: str | None, as_json: bool) -> None:
    """Trains ScaNN on an embedding run and packs text_searcher.tflite and image_searcher.tflite."""
    from indexer.build import build_index, summary

    report = build_index(config, embeddings, encoder)
    show(report, as_json, summary(report))


if __name__ == "__main__":
    main()
