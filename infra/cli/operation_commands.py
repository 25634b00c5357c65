"""Commands that keep a release up to date, and that report the state of re-indexing and of the environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infra.cli.option_groups import ALLOW_REMOVAL, BEAM, CORPUS, DATA, ENCODER, INDEX, PUBLISH, QUERIES, TRAIN, options
from searchforge.console.options import answers_soon, config_options, echo, repeated_options, reports_errors, show

if TYPE_CHECKING:
    from searchforge.config import Config


@click.command()
@options(*DATA, *QUERIES, *TRAIN, *ENCODER, *CORPUS, *BEAM, *INDEX, *PUBLISH)
@click.option("--channel", "reindex__channel", help="Release channel; default: production.")
@click.option(
    "--wait", "reindex__wait_seconds", type=float, metavar="SECONDS", help="Time to wait for a running re-index."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, without doing it.")
@click.option("--resume", is_flag=True, help="Run even after too many failures in a row.")
@ALLOW_REMOVAL
@click.option(
    "--trigger", default="command", show_default=True, help="What started the run, as recorded in the journal."
)
@reports_errors
@config_options
def reindex(config: Config, as_json: bool, dry_run: bool, resume: bool, allow_removal: bool, trigger: str) -> None:
    """Update the live release if the corpus has changed.

    Embeds, indexes, checks and publishes only what has changed since the live release.
    """
    from infra import api
    from infra.cli import summaries

    if dry_run:
        plan = api.preview_reindex(config)
        show(plan.entry.model_dump(), as_json, plan.summary)
        return
    done = api.reindex(config, trigger=trigger, resume=resume, allow_removal=allow_removal)
    show(done.model_dump(), as_json, summaries.reindex(done))


@click.command()
@options(*DATA, *QUERIES, *TRAIN, *ENCODER, *CORPUS, *BEAM, *INDEX, *PUBLISH)
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


@click.command()
@options(*PUBLISH)
@click.option("--list", "count", type=click.IntRange(1), default=10, show_default=True, help="Number of runs to show.")
@click.option("--lag", is_flag=True, help="List the corpus now to measure how far the index lags behind.")
@click.option("--check", "checks", is_flag=True, help="Exit with 1 if re-indexing has stopped or the index is too old.")
@click.option("--max-age", help="Maximum age of the index for --check, for example 26h.")
@click.option("--prometheus", is_flag=True, help="Print metrics in the Prometheus text format.")
@click.option("--output", type=click.Path(path_type=Path), help="File to which the metrics are written atomically.")
@reports_errors
@answers_soon
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
        echo(api.metrics(config), newline=False)
    else:
        found = api.status(config, count, lag)
        show(found, as_json, summaries.status(found))
        if checks:
            api.require_healthy(found, max_age)


@click.command()
@reports_errors
@answers_soon
@config_options
def doctor(config: Config, as_json: bool) -> None:
    """Check the environment and suggest a remedy for each problem."""
    from infra.cli import summaries
    from infra.cli.doctor import diagnose

    findings = diagnose(config.workspace)
    show(findings, as_json, summaries.findings(findings))
    if any(finding.status == "fault" for finding in findings):
        sys.exit(1)
