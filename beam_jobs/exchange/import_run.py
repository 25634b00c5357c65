"""Imports embeddings that were computed elsewhere, or exported, as an embedding run."""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from beam_jobs.exchange.batches import EmbeddingFile, at, to_record, unit_vectors
from beam_jobs.exchange.columns import RUN_FOLDER
from beam_jobs.exchange.files import open_files
from beam_jobs.planning.shards import Shard, shard_count, write_records
from searchforge import progress
from searchforge.artifacts.encoder import EncoderInfo
from searchforge.artifacts.manifest import Manifest, Modality, ShardInfo
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import MARKERS, Workspace
from searchforge.config import Config
from searchforge.errors import UsageError
from searchforge.hashing import content_id, sha256_file
from searchforge.storage.local import LocalStorage

logger = logging.getLogger(__name__)


def import_embeddings(
    config: Config, files: Sequence[Path], encoder: str, modality: Modality | None = None, ids: Sequence[Path] = ()
) -> Manifest:
    """Commits an embedding run of the embeddings in files, or returns the one that was imported from them before.

    The rows are read once, in the order of the files, and checked before the run is committed. An export comes back as
    the run that it was, with the same id and the same bytes.

    Args:
      files: Parquet, `.npy` or TFRecord files, or folders of Parquet or `.npy` files; see docs/embedding.md.
      encoder: Id of the encoder that computed the embeddings.
      modality: What was embedded; default: that of the exported run, otherwise images.
      ids: Files of ids, one for each `.npy` file; default: those beside them.

    Raises:
      UsageError: A file cannot be imported, embeddings are of another encoder, or an id occurs twice.
    """
    start = time.monotonic()
    workspace = Workspace(config.workspace)
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", encoder))
    opened = open_files(files, bundle.dim, ids)
    rows = sum(file.rows for file in opened.files)
    for file in opened.files:
        if file.fingerprint not in ("", bundle.fingerprint):
            raise UsageError(
                f"{file.name} has embeddings of encoder {file.fingerprint}, but {bundle.id} is encoder "
                f"{bundle.fingerprint}: their embedding spaces differ; choose the other encoder with --encoder"
            )
    if not rows:
        raise UsageError(f"{opened.paths[0]} has no rows; there is nothing to import")
    exported = _exported_run(opened.paths[0].parent, bundle, modality, rows)
    hashes = [sha256_file(path) for path in opened.paths]
    id = exported.id if exported else content_id(["import", bundle.fingerprint, modality or "images", hashes])
    if workspace.committed("embeddings", id):
        logger.info(f"embeddings/{id} is complete")
        return Manifest.model_validate(workspace.marker("embeddings", id))
    sizes = [shard.count for shard in exported.shards] if exported else _sizes(rows)
    with workspace.create("embeddings", id) as staging:
        with progress.track("importing", rows, "record") as advance:
            source = _Records(opened.files)
            storage = LocalStorage(str(staging.path.parent))
            shards = []
            for index, size in enumerate(sizes):
                if len(records := source.take(size)) < size:
                    raise UsageError("a file changed during the import: it has fewer rows than before")
                shards.append(write_records(storage, staging.path.name, Shard(index, len(sizes)), records, [])[0])
                advance(size)
        source.require_unique_ids()
        if source.normalized:
            logger.info(f"  {source.normalized:,} of {rows:,} embeddings were not of length 1 and were normalized")
        if exported:
            _restore(exported, shards, opened.paths[0].parent / RUN_FOLDER, staging.path)
            manifest = exported
        else:
            manifest = Manifest(
                id=id,
                modality=modality or "images",
                encoder=bundle.id,
                fingerprint=bundle.fingerprint,
                preprocessing=bundle.preprocessing,
                backend="imported",
                dim=bundle.dim,
                source=", ".join(str(path.absolute()) for path in files),
                inputs=rows,
                embedded=rows,
                reused=0,
                rejected=0,
                rejected_by_reason={},
                shards=tuple(shards),
                rejects=(),
                created=datetime.now(timezone.utc).isoformat(),
                seconds=round(time.monotonic() - start, 3),
            )
        staging.commit(manifest.model_dump())
    return manifest


def _exported_run(folder: Path, bundle: EncoderInfo, modality: Modality | None, rows: int) -> Manifest | None:
    """Returns the manifest of the run that was exported to a folder; None if there is none."""
    path = folder / RUN_FOLDER / MARKERS["embeddings"]
    advice = f"delete {path.parent} to import the files as a run of their own"
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not the manifest of an embedding run: {error}; {advice}") from None
    manifest.require_fingerprint(bundle.fingerprint, of=bundle.id)
    if modality not in (None, manifest.modality):
        raise UsageError(f"{folder} is an export of {manifest.modality}, not of {modality}; omit --modality")
    if manifest.records != rows:
        raise UsageError(
            f"the files have {rows} rows, but {folder} is an export of {manifest.records}; give all of its files, or "
            f"{advice}"
        )
    return manifest


def _restore(exported: Manifest, shards: Sequence[ShardInfo], source: Path, target: Path) -> None:
    """Copies the run's other files beside its shards, after comparing these with the manifest."""
    for found, expected in zip(shards, exported.shards, strict=True):
        if found.sha256 != expected.sha256:
            raise UsageError(
                f"the records of {expected.name} differ from the export of embeddings {exported.id}: SHA-256 "
                f"{found.sha256}, expected {expected.sha256}; export it again, or delete {source} to import the files "
                "as a run of their own"
            )
        (target / found.name).rename(target / expected.name)
    for path in source.iterdir():
        if path.name != MARKERS["embeddings"]:
            shutil.copyfile(path, target / path.name)


def _sizes(rows: int) -> list[int]:
    """Returns the number of rows of each shard, which differ by one at most."""
    total = shard_count(rows)
    return [rows * (index + 1) // total - rows * index // total for index in range(total)]


class _Records:
    """The records of all files in order, with unique ids; keeps 16 bytes for each.

    Attributes:
      normalized: Number of embeddings so far that were not of length 1.
    """

    def __init__(self, files: Sequence[EmbeddingFile]) -> None:
        self._files, self._records = files, self._iterate()
        self._digests = bytearray()
        self.normalized = 0

    def take(self, count: int) -> list[EmbeddingRecord]:
        """Returns the next records, fewer at the end of the files."""
        return list(itertools.islice(self._records, count))

    def require_unique_ids(self) -> None:
        """Reads the files to their end and raises UsageError if an id occurs twice."""
        if extra := self.take(1):
            raise UsageError(f"a file changed during the import: it has a further row, that of {extra[0].id!r}")
        digests = np.frombuffer(self._digests, "V16")
        order = np.argsort(digests.view([("", "<u8"), ("", "<u8")]), kind="stable")
        ordered = digests[order]
        if len(twice := np.flatnonzero(ordered[1:] == ordered[:-1])):
            first = min(twice, key=lambda position: order[position + 1])
            (id, one), (_, other) = self._row(int(order[first])), self._row(int(order[first + 1]))
            raise UsageError(f"id {id!r} occurs twice: {one} and {other}; give every row a unique id")

    def _iterate(self) -> Iterator[EmbeddingRecord]:
        for file in self._files:
            row = 0
            for batch in file.batches():
                vectors, normalized = unit_vectors(batch.vectors, file.name, row)
                self.normalized += normalized
                for fields, vector in zip(batch.fields, vectors, strict=True):
                    record = to_record(fields, vector, at(file.name, row))
                    self._digests += hashlib.blake2b(record.id.encode(), digest_size=16).digest()
                    yield record
                    row += 1

    def _row(self, number: int) -> tuple[str, str]:
        """Returns the id and the place of a row, by its number among those of all files."""
        for file in self._files:
            if number < file.rows:
                position = number
                for batch in file.batches():
                    if position < len(batch.fields):
                        return str(batch.fields[position]["id"]), at(file.name, number)
                    position -= len(batch.fields)
            number -= file.rows
        raise IndexError(number)
