"""Commands that export embedding runs for other tools, and import embeddings that were computed elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from searchforge.console.options import config_options, reports_errors, show

if TYPE_CHECKING:
    from searchforge.config import Config


@click.group()
def embeddings() -> None:
    """Export and import embeddings."""


@embeddings.command("export")
@click.argument("run", required=False)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["parquet", "npy"]),
    default="parquet",
    show_default=True,
    help="Sharded Parquet files, or one NumPy matrix beside ids.jsonl.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder to create; default: embeddings-RUN in this folder."
)
@reports_errors
@config_options
def export_command(
    config: Config, as_json: bool, run: str | None, file_format: Literal["parquet", "npy"], output: Path | None
) -> None:
    """Export the embedding run RUN, by default the only one in the workspace.

    pandas, DuckDB, FAISS, usearch and vector databases load the files as they are.
    """
    from infra import api

    report = api.export_embeddings(config, run, file_format, output)
    show(report, as_json, report.summary)
