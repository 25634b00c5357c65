"""Folds a matrix into an encoder's TFLite model, as its last layer.

Imports tflite-support, so it must run in an isolated process (searchforge.processes.isolated).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.errors import JobError

_IDENTIFIER = b"TFL3"
_UNNAMED = b"embedding"


def fold_matrix(model: bytes, matrix: npt.NDArray[np.float32]) -> bytes:
    """Returns a model that computes `matrix @ embedding` in float32.

    The layer's output [1, dim_out] float32 replaces the model's output, under the same names, in the graph and in its
    signatures; everything else is unchanged. Equal inputs give equal bytes.

    Args:
      model: TFLite flatbuffer; files appended to it are dropped.
      matrix: [dim_out, dim] float32.

    Raises:
      JobError: `model` is not a TFLite model, or its outputs are not a single float32 [1, dim].
    """
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    parsed = read_model(model)
    graph = parsed.subgraphs[0]
    output = _require_output(graph, matrix.shape[1])
    name = graph.tensors[output].name or _UNNAMED

    weights = schema.BufferT()
    weights.data = np.frombuffer(np.ascontiguousarray(matrix, "<f4").tobytes(), np.uint8)
    parsed.buffers.append(weights)
    names = {tensor.name for tensor in graph.tensors}
    graph.tensors[output].name = _unused(name + b"/unmapped", names)
    kernel = _tensor(_unused(name + b"/map", names), matrix.shape, len(parsed.buffers) - 1)
    graph.tensors += [kernel, _tensor(name, (1, len(matrix)), 0)]
    mapped = len(graph.tensors) - 1

    layer = schema.OperatorT()
    layer.opcodeIndex = _fully_connected(parsed)
    layer.inputs, layer.outputs = [output, mapped - 1, -1], [mapped]  # -1: no bias
    layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    layer.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators = [*(graph.operators or []), layer]
    graph.outputs = [mapped]
    for signature in parsed.signatureDefs or []:
        for entry in (signature.outputs or []) if signature.subgraphIndex == 0 else []:
            entry.tensorIndex = mapped if entry.tensorIndex == output else entry.tensorIndex
    return write_model(parsed, len(model) + matrix.nbytes)


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


def _require_output(graph: Any, dim: int) -> int:
    """Returns the index of the output tensor after verifying that the matrix fits it."""
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    if len(graph.outputs) != 1:
        raise JobError(f"the encoder has {len(graph.outputs)} outputs, expected 1; train it again")
    output = int(graph.outputs[0])
    tensor = graph.tensors[output]
    if tensor.type != schema.TensorType.FLOAT32:
        kinds = {value: kind for kind, value in vars(schema.TensorType).items() if isinstance(value, int)}
        raise JobError(f"the encoder's output is {kinds[tensor.type]}, expected FLOAT32; train it again")
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    if [size for size in shape[:-1] if size != 1] or shape[-1:] != [dim]:
        raise JobError(f"the encoder's output is {shape}, expected [1, {dim}]; index embeddings of this encoder")
    return output


def _tensor(name: bytes, shape: tuple[int, ...], buffer: int) -> Any:
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, list(shape), buffer
    tensor.type = schema.TensorType.FLOAT32
    return tensor


def _unused(name: bytes, names: set[bytes]) -> bytes:
    """Returns `name`, with underscores appended until no tensor has it."""
    while name in names:
        name += b"_"
    return name


def _fully_connected(model: Any) -> int:
    """Returns the index of FULLY_CONNECTED in the model's operator codes, adding it if it is missing."""
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    kind, version = schema.BuiltinOperator.FULLY_CONNECTED, 1
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == kind and code.version == version:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
