"""Commands that publish, list, search and delete releases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from infra.cli.option_groups import CHANNEL, PUBLISH, DurationInDays, options
from searchforge.console.options import answers_soon, config_options, reports_errors, show

if TYPE_CHECKING:
    from searchforge.config import Config


@click.command()
@options(*PUBLISH, *CHANNEL)
@click.option("--check", "check_id", help="Id of the check; default: the only one in the workspace.")
@reports_errors
@config_options
def publish(config: Config, as_json: bool, check_id: str | None, channel: str) -> None:
    """Publish a searcher that passed its check and make it live."""
    from infra import api
    from infra.cli import summaries

    release = api.publish(config, check_id, channel)
    show(release, as_json, summaries.release(release))


@click.command()
@options(*PUBLISH, *CHANNEL)
@click.option("--to", help="Id of the release; default: the previously live one.")
@reports_errors
@answers_soon
@config_options
def rollback(config: Config, as_json: bool, to: str | None, channel: str) -> None:
    """Make an earlier release live again."""
    from infra import api
    from infra.cli import summaries

    release = api.rollback(config, to, channel)
    show(release, as_json, summaries.release(release))


@click.command()
@options(*PUBLISH)
@click.option("--from", "source", default="staging", show_default=True, help="Source channel.")
@click.option("--to", "target", default="production", show_default=True, help="Target channel.")
@click.option("--release", help="Id of the release; default: the source channel's live one.")
@reports_errors
@answers_soon
@config_options
def promote(config: Config, as_json: bool, source: str, target: str, release: str | None) -> None:
    """Make the live release of one channel live in another channel."""
    from infra import api
    from infra.cli import summaries

    promoted = api.promote(config, source, target, release)
    show(promoted, as_json, summaries.release(promoted))


@click.command()
@options(*PUBLISH)
@reports_errors
@answers_soon
@config_options
def releases(config: Config, as_json: bool) -> None:
    """List releases and refused publications, most recent first."""
    from infra import api
    from infra.cli import summaries

    found = api.releases(config)
    show(found, as_json, summaries.releases(found))


@click.command()
@options(*PUBLISH)
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


@click.command()
@options(*PUBLISH, *CHANNEL)
@click.argument("query")
@click.option(
    "-k", "count", type=click.IntRange(1, 1000), default=10, show_default=True, help="Maximum number of hits."
)
@click.option("--release", help="Id of a release, or folder or URL of releases; default: the live one.")
@click.option("--open", "open_sheet", is_flag=True, help="Write a contact sheet of the hits and open it.")
@reports_errors
@answers_soon
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


@click.command()
@options(*PUBLISH)
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
