"""Packs an index into an encoder's TFLite file, where the Task Library's TextSearcher and ImageSearcher look for it.

Imports tflite-support, so it runs in the worker process only.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from searchforge.errors import JobError

INDEX_NAME = "on_device_scann_index.ldb"
"""Name of the index inside the searcher; the one that Model Maker gives it."""

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack_searcher(encoder: Path, index: Path, searcher: Path) -> None:
    """Writes `searcher`: the encoder's model with the index as an associated file of its output tensor.

    All metadata of the encoder is kept. Equal inputs give equal bytes.

    Raises:
      JobError: the encoder carries no metadata, or not of exactly one output tensor, or an index already.
    """
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema
    from tensorflow_lite_support.metadata.python import metadata as tflite_metadata

    model = encoder.read_bytes()
    buffer = tflite_metadata.get_metadata_buffer(model)
    if not buffer:
        raise JobError(f"{encoder.name} carries no TFLite metadata; train the encoder again")
    metadata = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAsModelMetadata(buffer, 0))
    outputs = metadata.subgraphMetadata[0].outputTensorMetadata or []
    if len(outputs) != 1:
        raise JobError(f"{encoder.name} has metadata of {len(outputs)} output tensors, expected 1; train it again")
    files = outputs[0].associatedFiles or []
    if any(file.type == schema.AssociatedFileType.SCANN_INDEX_FILE for file in files):
        raise JobError(f"{encoder.name} carries an index already; expected an encoder, not a searcher")
    entry = schema.AssociatedFileT()
    entry.name = INDEX_NAME
    entry.description = "On-device ScaNN index in LevelDB format."
    entry.type = schema.AssociatedFileType.SCANN_INDEX_FILE
    outputs[0].associatedFiles = [*files, entry]

    populator = tflite_metadata.MetadataPopulator.with_model_buffer(model)
    populator.load_metadata_buffer(_serialize(metadata, tflite_metadata.MetadataPopulator.METADATA_FILE_IDENTIFIER))
    populator.load_associated_file_buffers({INDEX_NAME: index.read_bytes()})
    populator.populate()
    searcher.write_bytes(_without_times(bytes(populator.get_model_buffer())))


def _serialize(metadata, identifier: bytes) -> bytes:  # type: ignore[no-untyped-def]
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(metadata.Pack(builder), identifier)
    return bytes(builder.Output())


def _without_times(model: bytes) -> bytes:
    """Writes the ZIP archive behind the model again, its files dated 1980: the populator dates them today."""
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist()]
        model_end = min(info.header_offset for info in archive.infolist())
    packed = io.BytesIO(model[:model_end])
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), data)
    return packed.getvalue()
