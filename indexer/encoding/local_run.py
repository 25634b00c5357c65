"""Encodes a whole corpus with a quantizer, in threads or as a Beam job, and caches the encoded shards."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from indexer.corpus.shards import Shard
from indexer.encoding.encoded_shards import EncodedCorpus, encode_shards, encoded_shard_name, merge_shards
from indexer.quantization.quantizer import Quantizer
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.config import IndexConfig
from searchforge.storage.local import LocalStorage

_CACHE = "parts"
_RETENTION_SECONDS = 24 * 3600


def encode_corpus(
    workspace: Workspace,
    manifest: Manifest,
    shards: Sequence[Shard],
    quantizer: Quantizer,
    config: IndexConfig,
    threads: int,
    metadata_file: Path,
) -> EncodedCorpus:
    """Returns the encoded corpus. Shards that are already encoded with this quantizer are taken from the cache.

    Args:
      metadata_file: File to write; the result maps it into memory.

    Raises:
      UsageError: The corpus contains records that cannot be indexed.
      JobError: A shard or an encoded shard is damaged, or the Beam job failed.
    """
    folder = workspace.cache(f"{_CACHE}/{quantizer.id}")
    _mark_used(folder, shards)
    if config.runner:
        _encode_with_beam(workspace, manifest, shards, quantizer, config, folder)
    else:
        encode_shards(shards, quantizer, folder, threads)
    encoded = merge_shards(shards, quantizer, folder, metadata_file)
    delete_stale_shards(folder, shards)
    return encoded


def delete_stale_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Deletes what has been unused for a day: encoded shards that left the corpus, and those of other quantizers.

    A concurrent build of another corpus may have the same quantizer.
    """
    current = {encoded_shard_name(info) for info, _ in shards}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a concurrent build may delete it, too
            if path.name not in current and _is_unused(path):
                path.unlink()
    delete_unused(folder)


def _mark_used(folder: Path, shards: Sequence[Shard]) -> None:
    """Keeps concurrent builds from deleting the encoded shards that this build finds in the cache."""
    os.utime(folder)
    for info, _ in shards:
        with contextlib.suppress(FileNotFoundError):
            os.utime(folder / encoded_shard_name(info))


def _is_unused(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _RETENTION_SECONDS


def delete_unused(used: Path) -> None:
    """Marks a cache entry as used and deletes its siblings that have been unused for a day.

    Entries of a concurrent build are younger than that.
    """
    os.utime(used)
    for other in used.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a concurrent build may delete it, too
            if _is_unused(other):
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
    """Runs the Beam job and copies its results from a remote workspace into `folder`."""
    from indexer.encoding.beam_run import encode_with_beam  # importing Beam takes seconds

    prefix = f"cache/{_CACHE}/{quantizer.id}"
    encode_with_beam(workspace, manifest, quantizer, prefix, str(config.runner), config.beam_options)
    if not isinstance(workspace.storage, LocalStorage):
        for info, _ in shards:
            name = encoded_shard_name(info)
            if not (folder / name).exists():
                LocalStorage(str(folder)).write(name, workspace.storage.read(f"{prefix}/{name}"))
