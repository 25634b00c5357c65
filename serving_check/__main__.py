"""The command `python -m serving_check`: checks a searcher; exits with 1 if a gate fails."""

from __future__ import annotations

import sys

import click

from searchforge.config import Config
from searchforge.console.options import config_options, reports_errors, show


@click.command()
@click.option("--searcher", required=True, help="Id of the searcher to check.")
@click.option("--captions", "data__captions", multiple=True, help="Caption file to ask with; repeatable.")
@click.option("--images", "data__images", help="Folder of the captioned images.")
@click.option("--queries", "data__queries", help="Query log to ask with where there are no captions.")
@reports_errors
@config_options
def main(config: Config, searcher: str, as_json: bool) -> None:
    """Opens both searchers with the Task Library, measures them, and writes report.json and report.html."""
    from serving_check.check import check
    from serving_check.schema import Report, summary

    report = check(config, searcher)
    show(report, as_json, summary(Report.model_validate(report)))
    if not report["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
