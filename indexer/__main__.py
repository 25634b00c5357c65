"""`python -m indexer`: builds a searcher from an embedding run, as a job on its own."""

from __future__ import annotations

import click

from searchforge.config import Config
from searchforge.console.options import config_options, reports_errors, show


@click.command()
@click.option("--embeddings", required=True, help="Id of the embedding run to index.")
@click.option("--encoder", help="Id of the encoder bundle; by default the one that made the embeddings.")
@click.option("--captions", "data__captions", multiple=True, help="Of images, to tune with; may be repeated.")
@click.option("--images", "data__images", help="Folder of the captioned images.")
@click.option("--preset", "index__preset", type=click.Choice(["best", "recipe2022"]), help="Sets what is not given.")
@click.option("--recall-at-10", "index__recall_at_10", type=float, help="To reach, on held-out captions.")
@click.option("--max-latency-ms", "index__max_latency_ms", type=float, help="Of a search, encoding apart.")
@click.option("--max-index-size", "index__max_index_size", help="Of the index, e.g. 50MB.")
@click.option("--code-bytes", "index__code_bytes", type=int, help="Of an item; tuned by default.")
@click.option("--partitions", "index__partitions", type=int, help="Tuned by default.")
@click.option("--partitions-searched", "index__partitions_searched", type=int, help="By a query; tuned by default.")
@click.option("--reuse-from", "index__reuse_from", help="Earlier searcher whose quantizer is used again; auto or none.")
@reports_errors
@config_options
def main(config: Config, embeddings: str, encoder: str | None, as_json: bool) -> None:
    """Tunes and builds the index of an embedding run; packs text_searcher.tflite and image_searcher.tflite."""
    from indexer.build import build_index, summary

    report = build_index(config, embeddings, encoder)
    show(report, as_json, summary(report))


if __name__ == "__main__":
    main()
