"""TFLite text encoders that return their input: an embedding is the ids, the mask and the segment ids as floats.

They show how the Task Library tokenizes a text. The module also runs as the child process that tflite-support requires.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.processes import isolated, task_library

MODULE = "ondevice.tests.echo_encoder"


def write_bert(model: Path, vocabulary: bytes, length: int) -> Path:
    """Writes an encoder with a BertTokenizer and three inputs of `length` tokens; returns its path."""
    return _write({"model": str(model), "length": length, "pattern": None}, vocabulary)


def write_regex(model: Path, vocabulary: bytes, length: int, pattern: str) -> Path:
    """Writes an encoder with a RegexTokenizer and one input of `length` tokens; returns its path."""
    return _write({"model": str(model), "length": length, "pattern": pattern}, vocabulary)


def tokens(
    model: Path, texts: Sequence[str], length: int, session: isolated.Session | None = None
) -> npt.NDArray[np.int64]:
    """Tokenizes texts with the Task Library.

    Args:
      session: Session of searchforge.processes.task_library; default: one for this call.

    Returns:
      [n, inputs, length]; a BERT encoder's inputs are ids, mask and segment ids.
    """
    embeddings, _ = task_library.embed_texts(model, texts, session)
    return embeddings.astype(np.int64).reshape(len(texts), -1, length)


def _write(request: dict[str, Any], vocabulary: bytes) -> Path:
    model = Path(request["model"])
    file = model.with_suffix(".txt")
    file.write_bytes(vocabulary)
    isolated.call(MODULE, {**request, "vocabulary": str(file)})
    return model


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info, metadata_writer

    from trainer.export.tflite_metadata import describe_text

    model, vocabulary = Path(request["model"]), request["vocabulary"]
    if request["pattern"] is None:
        model.write_bytes(_echo(["ids", "mask", "segment_ids"], request["length"]))
        describe_text(model, Path(vocabulary))
        return {}
    tokenizer = metadata_info.RegexTokenizerMd(request["pattern"], vocabulary)
    writer = metadata_writer.MetadataWriter.create_from_metadata_info(
        bytearray(_echo(["text"], request["length"])),
        metadata_info.GeneralMd(name="Echo"),
        [metadata_info.InputTextTensorMd("text", tokenizer_md=tokenizer)],
        [metadata_info.TensorMd("embedding")],
        [vocabulary],
    )
    model.write_bytes(writer.populate())
    return {}


def _echo(inputs: list[str], length: int) -> bytes:
    """Returns a model that concatenates its inputs, [1, length] int32 each, and casts them to float32."""
    import flatbuffers
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    def tensor(name: str, width: int, kind: int) -> schema.TensorT:
        described = schema.TensorT()
        described.name, described.shape, described.type, described.buffer = name, [1, width], kind, 0
        return described

    def operator(code: int, sources: list[int], target: int) -> schema.OperatorT:
        described = schema.OperatorT()
        described.opcodeIndex, described.inputs, described.outputs = code, sources, [target]
        return described

    def operator_code(builtin: int) -> schema.OperatorCodeT:
        described = schema.OperatorCodeT()
        described.builtinCode = described.deprecatedBuiltinCode = builtin
        described.version = 1
        return described

    count = len(inputs)
    concatenation, cast = operator(0, list(range(count)), count), operator(1, [count], count + 1)
    concatenation.builtinOptionsType = schema.BuiltinOptions.ConcatenationOptions
    concatenation.builtinOptions = schema.ConcatenationOptionsT()
    concatenation.builtinOptions.axis = 1
    cast.builtinOptionsType, cast.builtinOptions = schema.BuiltinOptions.CastOptions, schema.CastOptionsT()
    cast.builtinOptions.inDataType = schema.TensorType.INT32
    cast.builtinOptions.outDataType = schema.TensorType.FLOAT32
    graph = schema.SubGraphT()
    graph.tensors = [
        *(tensor(name, length, schema.TensorType.INT32) for name in inputs),
        tensor("tokens", count * length, schema.TensorType.INT32),
        tensor("embedding", count * length, schema.TensorType.FLOAT32),
    ]
    graph.inputs, graph.outputs, graph.operators = list(range(count)), [count + 1], [concatenation, cast]
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = [
        operator_code(schema.BuiltinOperator.CONCATENATION),
        operator_code(schema.BuiltinOperator.CAST),
    ]
    model.subgraphs, model.buffers = [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


if __name__ == "__main__":
    isolated.serve(_handle)
