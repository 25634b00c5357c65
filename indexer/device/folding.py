"""Folds a matrix into an encoder's TFLite model, as its last layer.

Imports tflite-support, so it must run in an isolated process (searchforge.processes.isolated).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.tflite_graph import (
    add_constant,
    append_operator,
    read_model,
    shape_of,
    type_name,
    unused_name,
    write_model,
)
from searchforge.errors import JobError


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
    output = _require_output(parsed.subgraphs[0], matrix.shape[1])
    name = parsed.subgraphs[0].tensors[output].name or b"embedding"
    kernel = add_constant(parsed, unused_name(parsed, name + b"/map"), matrix)
    options = schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT()
    kind = schema.BuiltinOperator.FULLY_CONNECTED
    append_operator(parsed, kind, 1, [output, kernel, -1], (1, len(matrix)), options)  # -1: no bias
    return write_model(parsed, len(model) + matrix.nbytes)


def _require_output(graph: Any, dim: int) -> int:
    """Returns the index of the output tensor after verifying that the matrix fits it."""
    if len(graph.outputs) != 1:
        raise JobError(f"the encoder has {len(graph.outputs)} outputs, expected 1; train it again")
    output = int(graph.outputs[0])
    if (kind := type_name(graph.tensors[output])) != "FLOAT32":
        raise JobError(f"the encoder's output is {kind}, expected FLOAT32; train it again")
    shape = shape_of(graph.tensors[output])
    if [size for size in shape[:-1] if size != 1] or shape[-1:] != [dim]:
        raise JobError(f"the encoder's output is {shape}, expected [1, {dim}]; index embeddings of this encoder")
    return output
