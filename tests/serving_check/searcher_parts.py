"""Parses searcher files and writes them again with valid checksums, so that only the part that a test damages is wrong.

A searcher file is a flatbuffer followed by a ZIP archive; the index in the archive is a LevelDB table.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from tensorflow_lite_support.metadata import metadata_schema_py_generated as metadata_schema

from indexer.device.leveldb_writer import TableWriter
from indexer.device.packing import INDEX_NAME
from searchforge.artifacts.tflite_graph import read_model, write_model
from searchforge.protobuf import read_varint, varint
from serving_check.formats.leveldb_reader import read_table
from serving_check.formats.scann_schema import scann_on_device_config

Entries = dict[bytes, bytes]
"""Values of a LevelDB table by key."""

_METADATA = b"TFLITE_METADATA"
_SCANN, _KIND, _CODE_BYTES, _OFFSETS = 1, 2, 3, 4
"""Field numbers of INDEX_CONFIG."""


def table_entries(table: bytes) -> Entries:
    """Returns the entries of a table."""
    return dict(read_table(table))


def table_of(entries: Entries, compression: bool = True) -> bytes:
    """Returns a complete table with these entries."""
    file = io.BytesIO()
    writer = TableWriter(file, compression)
    for key in sorted(entries):
        writer.add(key, entries[key], compress=key.startswith((b"M_", b"USER_INFO")))
    writer.finish()
    return file.getvalue()


@dataclass
class Index:
    """A parsed index. Item i has the i-th code of all partitions in order.

    Attributes:
      scann: ScannOnDeviceConfig with centroids, codebooks, look-up type and search fraction.
      kind: Embedding type of the codes.
      code_bytes: Bytes of a code.
      offsets: Number of the first item of each partition.
      codes: [n, code_bytes] uint8 codes of each partition.
      metadata: Metadata of each item.
    """

    scann: Any
    kind: int
    code_bytes: int
    offsets: list[int]
    codes: list[np.ndarray]
    metadata: list[bytes]
    user_info: bytes

    @classmethod
    def of_entries(cls, entries: Entries) -> Index:
        """Parses the entries of a valid index."""
        fields = _fields(entries[b"INDEX_CONFIG"])
        scann = scann_on_device_config().FromString(fields[_SCANN])
        partitions = len(scann.partitioner.leaf)
        code_bytes = fields[_CODE_BYTES]
        return cls(
            scann=scann,
            kind=fields[_KIND],
            code_bytes=code_bytes,
            offsets=_varints(fields[_OFFSETS]),
            codes=[np.frombuffer(entries[b"E_%d" % i], np.uint8).reshape(-1, code_bytes) for i in range(partitions)],
            metadata=[entries[b"M_%d" % i] for i in range(sum(key.startswith(b"M_") for key in entries))],
            user_info=entries[b"USER_INFO"],
        )

    def entries(self) -> Entries:
        """Returns the entries, without verifying them."""
        config = _field(_SCANN, self.scann.SerializeToString())
        config += bytes([_KIND << 3]) + varint(self.kind) + bytes([_CODE_BYTES << 3]) + varint(self.code_bytes)
        config += _field(_OFFSETS, b"".join(map(varint, self.offsets)))
        return {
            **{b"E_%d" % i: codes.tobytes() for i, codes in enumerate(self.codes)},
            b"INDEX_CONFIG": config,
            **{b"M_%d" % i: metadata for i, metadata in enumerate(self.metadata)},
            b"USER_INFO": self.user_info,
        }

    @property
    def leaves(self) -> Any:
        """Messages of the centroids, whose `dimension` can be changed."""
        return self.scann.partitioner.leaf

    @property
    def blocks(self) -> Any:
        """Messages of the codebooks, one for each byte of a code."""
        return self.scann.indexer.asymmetric_hashing.subspace

    @property
    def widths(self) -> list[int]:
        """Number of dimensions of each block."""
        return [len(block.entry[0].dimension) for block in self.blocks]

    def select(self, items: Sequence[int]) -> None:
        """Keeps these items, given in ascending order and possibly repeated; their partitions stay the same."""
        codes, partition_of = np.concatenate(self.codes), self._partitions()
        chosen = np.asarray(items, np.int64)
        self.codes = [codes[chosen[partition_of[chosen] == p]] for p in range(len(self.codes))]
        self.metadata = [self.metadata[item] for item in items]
        self.lay_out()

    def lay_out(self) -> None:
        """Sets the offsets that follow from the number of codes in each partition."""
        sizes = [len(codes) for codes in self.codes]
        self.offsets = (np.cumsum(sizes) - sizes).tolist()

    def replace_codes(self, codes: np.ndarray) -> None:
        """Replaces the codes of all items, [items, code_bytes] uint8."""
        self.codes = [codes[start : start + len(old)] for start, old in zip(self.offsets, self.codes, strict=True)]

    def change_item(self, item: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Applies a function to the JSON metadata of an item."""
        self.metadata[item] = json.dumps(change(json.loads(self.metadata[item])), sort_keys=True).encode()

    def change_user_info(self, **values: Any) -> None:
        """Replaces values of USER_INFO."""
        self.user_info = json.dumps({**json.loads(self.user_info), **values}, sort_keys=True).encode()

    def _partitions(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.codes)), [len(codes) for codes in self.codes])


@dataclass
class SearcherFile:
    """A parsed searcher file.

    Attributes:
      model: The flatbuffer.
      files: Files of the archive by name.
    """

    model: bytes
    files: dict[str, bytes]

    @classmethod
    def read(cls, path: Path) -> SearcherFile:
        """Parses a valid searcher or encoder."""
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            start = min(info.header_offset for info in archive.infolist())
            return cls(data[:start], {name: archive.read(name) for name in archive.namelist()})

    def write(self, path: Path) -> None:
        """Writes the file."""
        with path.open("wb") as target:
            target.write(self.model)
            with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
                for name, data in self.files.items():
                    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)

    @property
    def table(self) -> bytes:
        """LevelDB table of the index."""
        return self.files[INDEX_NAME]

    def change_model(self, change: Callable[[Any], None]) -> None:
        """Applies a function to the model as a ModelT."""
        model = read_model(self.model)
        change(model)
        self.model = write_model(model, len(self.model))

    def change_metadata(self, change: Callable[[Any], None]) -> None:
        """Applies a function to the model's metadata as a ModelMetadataT."""

        def rewrite(model: Any) -> None:
            (number,) = [entry.buffer for entry in model.metadata if entry.name == _METADATA]
            buffer = model.buffers[number]
            read = metadata_schema.ModelMetadata.GetRootAs(buffer.data.tobytes(), 0)
            metadata = metadata_schema.ModelMetadataT.InitFromObj(read)
            change(metadata)
            builder = flatbuffers.Builder(0)
            builder.Finish(metadata.Pack(builder), b"M001")
            buffer.data = np.frombuffer(bytes(builder.Output()), np.uint8)

        self.change_model(rewrite)


def weights(model: Any, at_least: int) -> list[Any]:
    """Returns the buffers of a ModelT's float32 constants with at least so many values."""
    numbers = {
        tensor.buffer
        for tensor in model.subgraphs[0].tensors
        if tensor.type == 0 and np.prod(tensor.shape, dtype=int) >= at_least
    }
    return [buffer for number, buffer in enumerate(model.buffers) if number in numbers and buffer.data is not None]


def _fields(message: bytes) -> dict[int, Any]:
    """Returns the fields of a protobuf message by number, as integers or bytes."""
    fields: dict[int, Any] = {}
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        value, position = read_varint(message, position)
        if tag & 7 == 2:
            fields[tag >> 3] = message[position : position + value]
            position += value
        else:
            fields[tag >> 3] = value
    return fields


def _varints(data: bytes) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = read_varint(data, position)
        values.append(value)
    return values


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(value)) + value
