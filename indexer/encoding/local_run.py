"""Encodes a whole corpus with a quantizer: in threads here, or as a Beam job; finished parts are found again."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from indexer.corpus.shards import Shard
from indexer.encoding.encoded_shards import Merged, encode_shards, merge, part_name
from indexer.quantization.quantizer import Quantizer
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import IndexConfig
from searchforge.storage.local import LocalStorage

_CACHE = "parts"
_KEPT_SECONDS = 24 * 3600


def encode_corpus(
    workspace: Workspace,
    manifest: Manifest,
    shards: Sequence[Shard],
    quantizer: Quantizer,
    config: IndexConfig,
    threads: int,
    metadata_file: Path,
) -> Merged:
    """Returns the encoded corpus; only shards that have no part of this quantizer are encoded.

    Args:
      metadata_file: written; the result maps it.

    Raises:
      UsageError: the corpus must not be indexed.
      JobError: a shard or a part is damaged, or the Beam job failed.
    """
    folder = workspace.cache(f"{_CACHE}/{quantizer.id}")
    if config.runner:
        _encode_with_beam(workspace, manifest, shards, quantizer, config, folder)
    else:
        encode_shards(shards, quantizer, folder, threads)
    merged = merge(shards, quantizer, folder, metadata_file)
    forget_parts(folder, shards)
    return merged


def forget_parts(folder: Path, shards: Sequence[Shard]) -> None:
    """Deletes parts of shards that the corpus no longer has, and those of quantizers that were not used for a day."""
    current = {part_name(info) for info, _ in shards}
    for part in folder.iterdir():
        if part.name not in current:
            part.unlink(missing_ok=True)
    forget_unused(folder)


def forget_unused(used: Path) -> None:
    """Notes that a file or folder of a cache is used, and deletes those beside it that were not for a day.

    A build that runs at this moment uses what is younger.
    """
    os.utime(used)
    for other in used.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another build deletes, too
            if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                if other.is_dir():
                    shutil.rmtree(other, ignore_errors=True)
                else:
                    other.unlink()


def _encode_with_beam(
    workspace: Workspace,
    manifest: Manifest,
    shards: Sequence[Shard],
    quantizer: Quantizer,
    config: IndexConfig,
    folder: Path,
) -> None:
    from indexer.encoding.beam_run import encode_with_beam  # Beam takes seconds to import

    name = f"cache/{_CACHE}/{quantizer.id}"
    encode_with_beam(workspace, manifest, quantizer, name, str(config.runner), config.beam_options)
    if not isinstance(workspace.storage, LocalStorage):
        for info, _ in shards:
            if not (folder / part_name(info)).exists():
                LocalStorage(str(folder)).write(part_name(info), workspace.storage.read(f"{name}/{part_name(info)}"))
