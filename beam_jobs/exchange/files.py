"""Opens the files that embeddings are imported from, by the form that their names state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beam_jobs.exchange.batches import EmbeddingFile
from beam_jobs.exchange.npy_import import NpyEmbeddings
from beam_jobs.exchange.parquet_import import ParquetEmbeddings
from beam_jobs.exchange.tfrecord_import import TFRecordEmbeddings
from searchforge.captions.tfrecords import is_tfrecord
from searchforge.errors import UsageError

_PARQUET, _NPY = (".parquet", ".pq"), (".npy",)


@dataclass(frozen=True)
class OpenedFiles:
    """Files of embeddings in order, and all paths that are read, those of ids included."""

    files: tuple[EmbeddingFile, ...]
    paths: tuple[Path, ...]


def open_files(given: Sequence[Path], dim: int, ids: Sequence[Path] = ()) -> OpenedFiles:
    """Opens files of embeddings; a folder stands for its Parquet files, or else its `.npy` files, by name.

    Args:
      ids: Files of ids, one for each `.npy` file.

    Raises:
      UsageError: A file does not exist or cannot be imported.
    """
    paths = [path for entry in given for path in _expand(entry.expanduser())]
    matrices = [path for path in paths if path.suffix.lower() in _NPY]
    if ids and len(ids) != len(matrices):
        raise UsageError(f"there are {len(ids)} files of ids for {len(matrices)} .npy files; expected one for each")
    of_matrix = dict(zip(matrices, ids, strict=False))
    files: list[EmbeddingFile] = []
    read: list[Path] = []
    for path in paths:
        read.append(path)
        if path.suffix.lower() in _PARQUET:
            files.append(ParquetEmbeddings(path, dim))
        elif path.suffix.lower() in _NPY:
            matrix = NpyEmbeddings(path, dim, of_matrix.get(path))
            files.append(matrix)
            read.append(matrix.ids)
        elif is_tfrecord(path.name):
            files.append(TFRecordEmbeddings(path, dim))
        else:
            raise UsageError(f"{path} is neither .parquet nor .npy nor .tfrecord; name the file after its format")
    return OpenedFiles(tuple(files), tuple(read))


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        for suffixes in (_PARQUET, _NPY):
            if found := sorted(entry for entry in path.iterdir() if entry.suffix.lower() in suffixes):
                return found
        raise UsageError(f"folder {path} has neither Parquet nor .npy files")
    if not path.is_file():
        raise UsageError(f"{path} does not exist; expected a local file or folder of embeddings")
    return [path]
