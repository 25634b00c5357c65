"""Reads a TFLite file with metadata without the Task Library: the model, its metadata and its associated files.

Format: https://www.tensorflow.org/lite/models/convert/metadata: a flatbuffer, followed by a ZIP archive if the file has
associated files. This reader is independent of the indexer, so that it does not repeat a fault of the writer.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.hashing import sha256_bytes
from serving_check.formats.leveldb_reader import MAGIC

_METADATA_NAME = b"TFLITE_METADATA"

FULLY_CONNECTED = 9
"""Value of BuiltinOperator in TFLite's schema."""

FLOAT32 = 0
"""Value of TensorType in TFLite's schema."""


@dataclass(frozen=True)
class SearcherFile:
    """Contents of a searcher or an encoder.

    Attributes:
      size: Bytes of the file.
      model_bytes: Bytes of its flatbuffer.
      inputs, outputs: Name, shape and TensorType of each tensor.
      weights: Number of occurrences of each constant, by SHA-256.
      operators: BuiltinOperator of each operator of the first graph.
      last_kernel: [dim_out, dim] float32, matrix of the last operator; None if that is not a plain matrix product.
      metadata: ModelMetadata as nested dictionaries and lists; None if the file has none.
      files: Associated files by name, without the index.
      index: LevelDB table of the index; None if the file has none.
      index_name: Name of the index among the associated files.
    """

    size: int
    model_bytes: int
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    weights: Counter[str]
    operators: list[int]
    last_kernel: npt.NDArray[np.float32] | None
    metadata: dict[str, Any] | None
    files: dict[str, bytes]
    index: bytes | None
    index_name: str


def open_file(path: Path) -> SearcherFile:
    """Reads a file.

    Raises:
      ValueError: The file is not a TFLite file, or its archive is damaged.
      OSError: The file cannot be read.
    """
    size = path.stat().st_size
    files: dict[str, bytes] = {}
    model_bytes = size
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                files = {member.filename: archive.read(member) for member in members}
                model_bytes = min((member.header_offset for member in members), default=size)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"its associated files cannot be read: {error}") from None
    with path.open("rb") as file:
        model = file.read(model_bytes)
    index_name = next((name for name, data in files.items() if data.endswith(MAGIC)), "")
    index = files.pop(index_name) if index_name else None
    try:
        return _parse(model, size, files, index, index_name)
    except ValueError:
        raise
    except Exception as error:  # damaged offsets make the generated readers raise errors of any type
        raise ValueError(f"its flatbuffer is damaged: {type(error).__name__}: {error}") from None


def differences(found: Any, expected: Any, path: str) -> list[str]:
    """Returns where two nested structures differ, with both values; `path` is the name of the whole."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(found.keys() | expected.keys())
        return [d for key in keys for d in differences(found.get(key), expected.get(key), f"{path}.{key}")]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}[{i}]")]
    return [] if found == expected else [f"{path} is {_shortened(found)}, expected {_shortened(expected)}"]


def _parse(model: bytes, size: int, files: dict[str, bytes], index: bytes | None, index_name: str) -> SearcherFile:
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    if not schema.Model.ModelBufferHasIdentifier(model, 0):
        raise ValueError(f"it starts with {model[:8]!r}, expected a TFLite flatbuffer")
    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    graph = parsed.subgraphs[0]
    constants = [b.data.tobytes() for b in parsed.buffers if b.data is not None and len(b.data)]
    described = [entry.buffer for entry in parsed.metadata or [] if entry.name == _METADATA_NAME]
    metadata = _metadata(parsed.buffers[described[0]].data.tobytes()) if described else None
    not_weights = {parsed.buffers[entry.buffer].data.tobytes() for entry in parsed.metadata or []}
    return SearcherFile(
        size=size,
        model_bytes=len(model),
        inputs=_tensors(graph, graph.inputs),
        outputs=_tensors(graph, graph.outputs),
        weights=Counter(sha256_bytes(constant) for constant in constants if constant not in not_weights),
        operators=[_kind(parsed, operator) for operator in graph.operators or []],
        last_kernel=_last_kernel(parsed, graph),
        metadata=metadata,
        files=files,
        index=index,
        index_name=index_name,
    )


def _tensors(graph: Any, numbers: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    for number in numbers:
        tensor = graph.tensors[number]
        shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
        found.append({"name": (tensor.name or b"").decode(errors="replace"), "shape": shape, "type": int(tensor.type)})
    return found


def _kind(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _last_kernel(model: Any, graph: Any) -> npt.NDArray[np.float32] | None:
    """Returns the matrix of the last operator; see indexer.device.folding."""
    last = graph.operators[-1] if graph.operators else None
    if last is None or _kind(model, last) != FULLY_CONNECTED or last.outputs[0] != graph.outputs[0]:
        return None
    kernel = graph.tensors[last.inputs[1]]
    data = model.buffers[kernel.buffer].data
    plain = last.builtinOptions is None or not last.builtinOptions.fusedActivationFunction
    if kernel.type != FLOAT32 or data is None or len(kernel.shape) != 2 or max(last.inputs[2:], default=-1) >= 0:
        return None
    return np.frombuffer(data.tobytes(), "<f4").reshape(kernel.shape) if plain else None


def _metadata(data: bytes) -> dict[str, Any]:
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema

    plain = _plain(schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(data, 0)))
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    """Returns objects of the flatbuffer object API as dictionaries and lists."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "__dict__"):
        return {key: _plain(entry) for key, entry in vars(value).items()}
    return value


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
