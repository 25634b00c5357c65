"""Packs an index into an encoder's TFLite file, where the Task Library's TextSearcher and ImageSearcher expect it.

The file is a model's flatbuffer, whose metadata lists associated files, followed by a ZIP archive of these files. The
index is copied into the archive in chunks, so memory holds the encoder only. Imports tflite-support, so it must run in
an isolated process (searchforge.processes.isolated).
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.device.folding import fold_matrix
from searchforge.artifacts.associated_files import EPOCH, split, write_files
from searchforge.artifacts.tflite_graph import metadata_of, read_model, set_metadata, write_model
from searchforge.errors import JobError, UsageError

INDEX_NAME = "on_device_scann_index.ldb"
"""File name of the index inside the searcher, the same as Model Maker's."""

_MAX_BYTES = 2**32 - 1
"""Maximum size of a searcher: the largest offset in a ZIP archive without Zip64."""
_ZIP_OVERHEAD = 1 << 10
"""Upper bound on an archive's overhead per file, and at its end."""
_CHUNK = 1 << 20


def pack_searcher(
    encoder: Path, index: Path | None, searcher: Path, query_map: npt.NDArray[np.float32] | None = None
) -> None:
    """Writes `searcher`: the encoder's model with the index as an associated file of its output tensor.

    All other metadata and associated files are kept. Equal inputs give equal bytes.

    Args:
      index: Index file; None writes an encoder without an index, for use with separate index files.
      query_map: [dim_out, dim] float32; the searcher's encoder returns `query_map @ embedding`
        (indexer.device.folding).

    Raises:
      UsageError: The index is too large for the archive.
      JobError: The encoder has no metadata for exactly one output tensor, already contains an index, or the query map
        does not fit it.
    """
    model = encoder.read_bytes()
    _, files = split(model)
    if INDEX_NAME in files:
        raise JobError(f"{encoder.name} already contains an index; expected an encoder, not a searcher")
    if query_map is not None:
        model = fold_matrix(model, query_map)
    flatbuffer = _with_index_entry(model, encoder.name, listed=index is not None)
    size = index.stat().st_size if index else 0
    total = len(flatbuffer) + sum(map(len, files.values())) + size + _ZIP_OVERHEAD * (len(files) + 2)
    if total > _MAX_BYTES:
        raise UsageError(
            f"the index has {size:,} bytes, which makes a searcher of {total:,}; its ZIP archive is limited to 4 GiB "
            f"({_MAX_BYTES:,} bytes): split the corpus (index.partition_by) or choose smaller codes "
            "(index.code_bytes)"
        )
    with searcher.open("wb") as target:
        target.write(flatbuffer)
        # Offsets in the archive are relative to the start of the file. From 2 GiB on, Python writes Zip64 fields,
        # which the Task Library can read.
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            write_files(archive, files)
            if index is None:
                return
            entry = zipfile.ZipInfo(INDEX_NAME, EPOCH)
            entry.file_size = size
            with index.open("rb") as source, archive.open(entry, "w") as packed:
                shutil.copyfileobj(source, packed, _CHUNK)


def _with_index_entry(model: bytes, name: str, listed: bool) -> bytes:
    """Returns the flatbuffer with the index listed among the output tensor's files if `listed`."""
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema

    parsed = read_model(model)
    metadata = metadata_of(parsed)
    if metadata is None:
        raise JobError(f"{name} has no TFLite metadata; train the encoder again")
    outputs = [tensor for graph in metadata.subgraphMetadata or [] for tensor in graph.outputTensorMetadata or []]
    if len(outputs) != 1:
        raise JobError(f"{name} has metadata of {len(outputs)} output tensors, expected 1; train it again")
    files = outputs[0].associatedFiles or []
    if any(file.type == schema.AssociatedFileType.SCANN_INDEX_FILE for file in files):
        raise JobError(f"{name} already contains an index; expected an encoder, not a searcher")
    if not listed:
        return write_model(parsed, len(model))
    entry = schema.AssociatedFileT()
    entry.name = INDEX_NAME
    entry.description = "On-device ScaNN index in LevelDB format."
    entry.type = schema.AssociatedFileType.SCANN_INDEX_FILE
    outputs[0].associatedFiles = [*files, entry]
    set_metadata(parsed, metadata)
    return write_model(parsed, len(model))
