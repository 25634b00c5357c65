"""Packs an index into an encoder's TFLite file, where the Task Library's TextSearcher and ImageSearcher look for it.

The file is a model's flatbuffer, whose metadata names files, and a ZIP archive of these files behind it. The index
is copied into the archive piece by piece, so memory holds the encoder only. Imports tflite-support, so it runs in a
process of its own (searchforge.processes.isolated).
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.device.folding import folded, read_model, write_model
from searchforge.artifacts.associated_files import EPOCH, split, write_files
from searchforge.errors import JobError, UsageError

INDEX_NAME = "on_device_scann_index.ldb"
"""Name of the index inside the searcher; the one that Model Maker gives it."""

_METADATA_NAME = b"TFLITE_METADATA"
_METADATA_IDENTIFIER = b"M001"
_MAX_BYTES = 2**32 - 1
"""Of a searcher: what positions in a ZIP archive reach."""
_ZIP_ROOM = 1 << 10
"""More than what an archive holds of a file beside its data, or at its end."""
_PIECE = 1 << 20


def pack_searcher(
    encoder: Path, index: Path | None, searcher: Path, query_map: npt.NDArray[np.float32] | None = None
) -> None:
    """Writes `searcher`: the encoder's model with the index as an associated file of its output tensor.

    All metadata and associated files of the encoder are kept. Equal inputs give equal bytes.

    Args:
      index: None writes an encoder, for indexes that lie beside it.
      query_map: [dim_out, dim] float32; the searcher's encoder returns `query_map @ embedding`
        (indexer.device.folding).

    Raises:
      UsageError: the index is too large for the archive.
      JobError: the encoder carries no metadata, or not of exactly one output tensor, or an index already; or the query
        map does not fit it.
    """
    model = encoder.read_bytes()
    _, files = split(model)
    if INDEX_NAME in files:
        raise JobError(f"{encoder.name} carries an index already; expected an encoder, not a searcher")
    if query_map is not None:
        model = folded(model, query_map)
    flatbuffer = _with_index_entry(model, encoder.name, listed=index is not None)
    size = index.stat().st_size if index else 0
    total = len(flatbuffer) + sum(map(len, files.values())) + size + _ZIP_ROOM * (len(files) + 2)
    if total > _MAX_BYTES:
        raise UsageError(
            f"the index has {size:,} bytes, which makes a searcher of {total:,}; the ZIP archive in it ends at 4 GiB "
            f"({_MAX_BYTES:,} bytes): split the corpus (index.partition_by) or choose smaller codes "
            "(index.code_bytes)"
        )
    with searcher.open("wb") as target:
        target.write(flatbuffer)
        # Positions in the archive count from the start of the file. From 2 GiB on Python writes Zip64 fields, which
        # the Task Library reads, too.
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            write_files(archive, files)
            if index is None:
                return
            entry = zipfile.ZipInfo(INDEX_NAME, EPOCH)
            entry.file_size = size
            with index.open("rb") as source, archive.open(entry, "w") as packed:
                shutil.copyfileobj(source, packed, _PIECE)


def _with_index_entry(model: bytes, name: str, listed: bool) -> bytes:
    """Returns the flatbuffer, whose metadata lists the index with the output tensor's files if that is wanted."""
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema

    parsed = read_model(model)
    buffers = [entry.buffer for entry in parsed.metadata or [] if entry.name == _METADATA_NAME]
    if not buffers or parsed.buffers[buffers[0]].data is None:
        raise JobError(f"{name} carries no TFLite metadata; train the encoder again")
    buffer = parsed.buffers[buffers[0]]
    metadata = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(buffer.data.tobytes(), 0))
    outputs = [tensor for graph in metadata.subgraphMetadata or [] for tensor in graph.outputTensorMetadata or []]
    if len(outputs) != 1:
        raise JobError(f"{name} has metadata of {len(outputs)} output tensors, expected 1; train it again")
    files = outputs[0].associatedFiles or []
    if any(file.type == schema.AssociatedFileType.SCANN_INDEX_FILE for file in files):
        raise JobError(f"{name} carries an index already; expected an encoder, not a searcher")
    if not listed:
        return write_model(parsed, len(model))
    entry = schema.AssociatedFileT()
    entry.name = INDEX_NAME
    entry.description = "On-device ScaNN index in LevelDB format."
    entry.type = schema.AssociatedFileType.SCANN_INDEX_FILE
    outputs[0].associatedFiles = [*files, entry]
    buffer.data = np.frombuffer(_versioned(metadata), np.uint8)
    return write_model(parsed, len(model))


def _versioned(metadata: Any) -> bytes:
    """Returns the metadata's flatbuffer, which says the oldest version of readers that understand it."""
    from tensorflow_lite_support.metadata.cc.python import _pywrap_metadata_version

    metadata.minParserVersion = _pywrap_metadata_version.GetMinimumMetadataParserVersion(_serialized(metadata))
    return _serialized(metadata)


def _serialized(metadata: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(metadata.Pack(builder), _METADATA_IDENTIFIER)
    return bytes(builder.Output())
