"""Exports an embedding run to a folder of Parquet or NumPy files."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from beam_jobs.exchange.columns import RUN_FOLDER
from beam_jobs.exchange.npy_export import write_npy
from beam_jobs.exchange.parquet_export import write_parquet
from searchforge import progress
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.record_batches import read_batches
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.errors import UsageError
from searchforge.storage.files import converted_errors, make_folder, sync_files

logger = logging.getLogger(__name__)

Format = Literal["parquet", "npy"]


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
      embeddings: Id of the embedding run.
      folder: Folder of the export.
      records: Number of embeddings.
      dim: Dimension of the embeddings.
      files: Names of the files with the embeddings.
      bytes: Total size of these files.
      seconds: Wall time.
    """

    embeddings: str
    format: Format
    folder: str
    records: int
    dim: int
    files: tuple[str, ...]
    bytes: int
    seconds: float

    @property
    def summary(self) -> str:
        """Human-readable summary in one line."""
        return (
            f"{self.folder}: {self.records:,} embeddings of {self.dim} dimensions in {len(self.files)} "
            f"{self.format} files, {self.bytes / 1e6:,.1f} MB; {self.seconds:.1f} s"
        )


def export(config: Config, embeddings: str, format: Format = "parquet", folder: Path | None = None) -> ExportReport:
    """Writes the live records of an embedding run, in the order of the run, to a folder.

    The folder appears when it is complete. It also contains the other files of the run, in RUN_FOLDER, by which an
    import restores the run as it was, unless the run refers to shards of earlier runs.

    Args:
      embeddings: Id of the embedding run.
      folder: Folder to create; default: `embeddings-<id>` in the current folder.

    Raises:
      UsageError: The run does not exist, or the folder contains something.
      JobError: A shard is missing or damaged, or the folder cannot be written.
    """
    start = time.monotonic()
    workspace = Workspace(config.workspace)
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    folder = (folder or Path(f"embeddings-{embeddings}")).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists; expected a folder that does not exist or is empty: choose another --output")
    make_folder(folder.parent)
    staging = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    passes = 2 if format == "parquet" else 1
    try:
        with converted_errors(folder), progress.track("exporting", passes * manifest.records, "record") as advance:
            staging.mkdir()
            if format == "parquet":
                paths = write_parquet(lambda: read_batches(workspace, manifest), manifest, staging, advance)
            else:
                paths = write_npy(read_batches(workspace, manifest), manifest, staging, advance)
            if not any(shard.run or shard.dead for shard in manifest.shards):
                _copy_other_files(workspace.local("embeddings", manifest.id), manifest, staging / RUN_FOLDER)
            sync_files(staging)
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    names = tuple(path.name for path in paths)
    size = sum((folder / name).stat().st_size for name in names)
    seconds = round(time.monotonic() - start, 3)
    return ExportReport(manifest.id, format, str(folder), manifest.records, manifest.dim, names, size, seconds)


def _copy_other_files(source: Path, manifest: Manifest, target: Path) -> None:
    target.mkdir()
    shards = {shard.name for shard in manifest.shards}
    for path in source.iterdir():
        if path.is_file() and path.name not in shards:
            shutil.copyfile(path, target / path.name)
