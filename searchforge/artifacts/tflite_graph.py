"""Reads and writes the flatbuffer of a TFLite model and its metadata, and appends operators to its graph.

Imports tflite-support, so it must run in an isolated process (searchforge.processes.isolated).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.errors import JobError

_IDENTIFIER = b"TFL3"
_METADATA_NAME = b"TFLITE_METADATA"
_METADATA_IDENTIFIER = b"M001"


def read_model(model: bytes) -> Any:
    """Returns the ModelT of a TFLite flatbuffer; its buffers are views of `model`.

    Raises:
      JobError: `model` is not a TFLite flatbuffer.
    """
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    if not schema.Model.ModelBufferHasIdentifier(model, 0):
        raise JobError(f"a model starts with {model[:8]!r}, expected a TFLite flatbuffer; train the encoder again")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))


def write_model(model: Any, size: int) -> bytes:
    """Returns the flatbuffer of a ModelT of about `size` bytes, with tensor data aligned as the schema requires."""
    import flatbuffers

    class AlignedBuilder(flatbuffers.Builder):
        """Builder that applies the schema's `force_align: 16`, which the generated code omits."""

        def CreateNumpyVector(self, x: npt.NDArray[Any]) -> int:
            self.Prep(16, x.nbytes)
            offset: int = super().CreateNumpyVector(x)
            return offset

    builder = AlignedBuilder(size + size // 16 + 4096)  # growing the buffer would copy everything written so far
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def metadata_of(model: Any) -> Any:
    """Returns the ModelMetadataT of a ModelT; None if it has no metadata."""
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema

    buffers = [entry.buffer for entry in model.metadata or [] if entry.name == _METADATA_NAME]
    if not buffers or model.buffers[buffers[0]].data is None:
        return None
    return schema.ModelMetadataT.InitFromObj(
        schema.ModelMetadata.GetRootAs(model.buffers[buffers[0]].data.tobytes(), 0)
    )


def set_metadata(model: Any, metadata: Any) -> None:
    """Replaces the metadata of a ModelT, and states the minimum parser version that can read it."""
    from tensorflow_lite_support.metadata import schema_py_generated as schema
    from tensorflow_lite_support.metadata.cc.python import _pywrap_metadata_version

    metadata.minParserVersion = _pywrap_metadata_version.GetMinimumMetadataParserVersion(_serialized(metadata))
    entries = [entry for entry in model.metadata or [] if entry.name == _METADATA_NAME]
    if not entries:
        entry = schema.MetadataT()
        entry.name, entry.buffer = _METADATA_NAME, len(model.buffers)
        model.metadata = [*(model.metadata or []), entry]
        model.buffers.append(schema.BufferT())
        entries = [entry]
    model.buffers[entries[0].buffer].data = np.frombuffer(_serialized(metadata), np.uint8)


def _serialized(metadata: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(metadata.Pack(builder), _METADATA_IDENTIFIER)
    return bytes(builder.Output())


def add_constant(model: Any, name: bytes, values: npt.NDArray[Any]) -> int:
    """Adds a constant, float32 or int32, to the first graph; returns the number of its tensor."""
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes(), np.uint8)
    model.buffers.append(buffer)
    kind = schema.TensorType.FLOAT32 if values.dtype == np.float32 else schema.TensorType.INT32
    return _add_tensor(model, name, values.shape, kind, len(model.buffers) - 1)


def append_operator(
    model: Any, kind: int, version: int, inputs: Sequence[int], shape: Sequence[int], options: tuple[int, Any] | None
) -> None:
    """Appends an operator to the first graph, whose float32 result replaces the graph's only output under its name.

    Args:
      kind, version: BuiltinOperator and version of the operator.
      inputs: Numbers of its input tensors; -1 for an input that is left out.
      shape: Shape of the result.
      options: BuiltinOptions and the options, if the operator has any.
    """
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    graph = model.subgraphs[0]
    replaced = int(graph.outputs[0])
    name = graph.tensors[replaced].name or b"embedding"
    graph.tensors[replaced].name = unused_name(model, name + b"/unmapped")
    result = _add_tensor(model, name, shape, schema.TensorType.FLOAT32, 0)
    operator = schema.OperatorT()
    operator.opcodeIndex = _operator_code(model, kind, version)
    operator.inputs, operator.outputs = list(inputs), [result]
    if options:
        operator.builtinOptionsType, operator.builtinOptions = options
    graph.operators = [*(graph.operators or []), operator]
    graph.outputs = [result]
    for signature in model.signatureDefs or []:
        for entry in (signature.outputs or []) if signature.subgraphIndex == 0 else []:
            entry.tensorIndex = result if entry.tensorIndex == replaced else entry.tensorIndex


def unused_name(model: Any, name: bytes) -> bytes:
    """Returns `name`, with underscores appended until no tensor of the first graph has it."""
    names = {tensor.name for tensor in model.subgraphs[0].tensors}
    while name in names:
        name += b"_"
    return name


def shape_of(tensor: Any) -> list[int]:
    """Returns the shape of a TensorT."""
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]


def type_name(tensor: Any) -> str:
    """Returns the name of a TensorT's type, for example FLOAT32."""
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    return names[tensor.type]


def _add_tensor(model: Any, name: bytes, shape: Sequence[int], kind: int, buffer: int) -> int:
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer, tensor.type = name, list(shape), buffer, kind
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _operator_code(model: Any, kind: int, version: int) -> int:
    """Returns the index of an operator in the model's operator codes, adding it if it is missing."""
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == kind and code.version == version:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = kind, version
    code.deprecatedBuiltinCode = min(kind, _LAST_DEPRECATED_CODE)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


_LAST_DEPRECATED_CODE = 127
"""Value of the former field for operators, one byte wide, that refers readers to the current field."""
