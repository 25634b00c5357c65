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


@embeddings.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--encoder", required=True, help="Id of the encoder that computed the embeddings.")
@click.option(
    "--modality",
    type=click.Choice(["images", "texts"]),
    help="What was embedded; default: that of an exported run, otherwise images.",
)
@click.option(
    "--ids",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File with the ids of a .npy file, .jsonl or .txt; repeatable. Default: the one beside it.",
)
@reports_errors
@config_options
def import_command(
    config: Config,
    as_json: bool,
    files: tuple[Path, ...],
    encoder: str,
    modality: Literal["images", "texts"] | None,
    ids: tuple[Path, ...],
) -> None:
    """Import embeddings as an embedding run, which `index` takes: FILES are Parquet, .npy or TFRecords.

    Parquet files have the columns id and embedding; all other columns become metadata. An exported folder comes
    back as the run that it was. Nothing is stored unless every row can be.
    """
    from infra import api

    manifest = api.import_embeddings(config, files, encoder, modality, ids)
    show(manifest, as_json, manifest.summary)
