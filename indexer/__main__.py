"""Command line of the index stage: `python -m indexer` builds a searcher from an embedding run."""

from __future__ import annotations

import click

from searchforge.config import Config
from searchforge.console.options import config_options, reports_errors, show


@click.command()
@click.option("--embeddings", required=True, help="Id of the embedding run to index.")
@click.option("--encoder", help="Id of the encoder; default: that of the embeddings.")
@click.option("--captions", "data__captions", multiple=True, help="Caption file to tune with; repeatable.")
@click.option("--images", "data__images", help="Folder of the captioned images.")
@click.option("--queries", "data__queries", help="Query log to tune with where there are no captions.")
@click.option(
    "--preset", "index__preset", type=click.Choice(["best", "recipe2022"]), help="Preset for keys that are not set."
)
@click.option("--recall-at-10", "index__recall_at_10", type=float, help="Required recall@10 on held-out captions.")
@click.option("--max-latency-ms", "index__max_latency_ms", type=float, help="Maximum milliseconds of a search.")
@click.option("--max-index-size", "index__max_index_size", help="Maximum size of the index, for example 50MB.")
@click.option("--code-bytes", "index__code_bytes", type=int, help="Bytes per code; default: tuned.")
@click.option("--partitions", "index__partitions", type=int, help="Number of partitions; default: tuned.")
@click.option("--partitions-searched", "index__partitions_searched", type=int, help="Partitions searched per query.")
@click.option("--reuse-from", "index__reuse_from", help="Id of a searcher to reuse, auto or none.")
@reports_errors
@config_options
def main(config: Config, embeddings: str, encoder: str | None, as_json: bool) -> None:
    """Tune and build the index of an embedding run."""
    from indexer.compiled_code import offer_cache

    offer_cache(config.workspace)
    from indexer.build import build_index, summary

    report = build_index(config, embeddings, encoder)
    show(report, as_json, summary(report))


if __name__ == "__main__":
    main()
