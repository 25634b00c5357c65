"""Describes a TFLite encoder that was made elsewhere, and rewrites it in the form of a bundle's encoders.

A bundle's encoder has one output, float32 [1, dim] and L2-normalised, and the metadata by which the Task Library
tokenizes texts or scales images. What a file lacks is appended to its graph or written into its metadata; its weights
are unchanged.

Runs in a separate process without TensorFlow (`searchforge.processes.isolated`). Each request is a JSON object:

    {"do": "describe", "model": path}
    {"do": "rewrite_text", "model": path, "target": path, "output": tensor name, "normalize": whether to append an
     L2 normalisation, "vocabulary": path or null, "regex": pattern or null}
    {"do": "rewrite_image", "model": path, "target": path, "output": ..., "normalize": ..., "preprocessing": string}
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from searchforge.artifacts.associated_files import split, write_files
from searchforge.artifacts.tflite_graph import (
    add_constant,
    append_operator,
    metadata_of,
    read_model,
    set_metadata,
    shape_of,
    type_name,
    unused_name,
    write_model,
)
from searchforge.errors import JobError, SearchforgeError, UsageError
from searchforge.preprocessing import Preprocessing
from searchforge.processes import isolated
from trainer.export.tflite_metadata import SENTENCEPIECE, TASK_LIBRARY_SENTENCEPIECE, image_input, plain_name

MODULE = "trainer.importing.foreign_model"
"""Module that `isolated.call` runs."""

IMPORTS = (
    "tensorflow_lite_support.metadata.schema_py_generated",
    "tensorflow_lite_support.metadata.metadata_schema_py_generated",
    "tensorflow_lite_support.metadata.cc.python._pywrap_metadata_version",
    "tensorflow_lite_support.metadata.python.metadata_writers.metadata_info",
)
"""Modules that the fork server imports once for all processes; see searchforge.processes.fork_server."""

_BERT_INPUTS = {
    "ids": ("ids", "input_ids", "input_word_ids"),
    "mask": ("mask", "attention_mask", "input_mask"),
    "segment_ids": ("segment_ids", "token_type_ids", "input_type_ids"),
}
"""Accepted names of a BERT model's inputs, by the names that the Task Library requires in the metadata."""

_DEQUANTIZE_VERSIONS = {"UINT8": 1, "INT8": 2}
"""Version of the operator DEQUANTIZE by the type of its input."""


def describe(path: Path) -> dict[str, Any]:
    """Returns a file's tensors and what its metadata states.

    Returns:
      `inputs` and `outputs`: name, shape and type of each tensor; `normalization`: mean and std of the image input, or
      None; `tokenizer`: name of the tokenizer's options in the metadata, or None; `has_metadata`; `license`; `files`:
      names of the associated files.

    Raises:
      UsageError: The file is not a TFLite model.
    """
    model, files = _read(path)
    graph, metadata = model.subgraphs[0], metadata_of(model)
    units = _process_units(metadata)
    options = {type(unit.options).__name__.removesuffix("T"): unit.options for unit in units}
    normalization = options.get("NormalizationOptions")
    return {
        "inputs": [_tensor(graph.tensors[number]) for number in graph.inputs],
        "outputs": [_tensor(graph.tensors[number]) for number in graph.outputs],
        "normalization": normalization
        and {"mean": list(map(float, normalization.mean)), "std": list(map(float, normalization.std))},
        "tokenizer": next((name for name in options if name.endswith("TokenizerOptions")), None),
        "has_metadata": metadata is not None,
        "license": (metadata.license or b"").decode(errors="replace") if metadata else "",
        "files": sorted(files),
    }


def rewrite_text(
    path: Path, target: Path, output: str, normalize: bool, vocabulary: Path | None, regex: str | None
) -> None:
    """Writes a text encoder in the form of a bundle's.

    Args:
      output: Name of the output tensor to keep.
      normalize: Whether to append an L2 normalisation.
      vocabulary: Vocabulary of the tokenizer, one token a line; None if the file's metadata has one or the model takes
        strings.
      regex: Regular expression of the delimiters between the tokens, for a model with one input of token ids.
    """
    model, files = _read(path)
    metadata = _with_single_output(model, output, normalize)
    for code in model.operatorCodes:
        if code.customCode == SENTENCEPIECE:
            code.customCode = TASK_LIBRARY_SENTENCEPIECE
    if vocabulary:
        metadata.subgraphMetadata[0].inputTensorMetadata = None
        metadata.subgraphMetadata[0].inputProcessUnits = None
        files = {**files, "vocab.txt": vocabulary.read_bytes()}
        (_describe_bert if regex is None else _describe_regex)(model, metadata.subgraphMetadata[0], regex)
    elif not metadata.subgraphMetadata[0].inputTensorMetadata:
        metadata.subgraphMetadata[0].inputTensorMetadata = [_tensor_metadata("text", "The text to embed.")]
    _write(model, metadata, files, target)


def rewrite_image(path: Path, target: Path, output: str, normalize: bool, preprocessing: str) -> None:
    """Writes an image encoder in the form of a bundle's; arguments as in `rewrite_text`."""
    model, files = _read(path)
    metadata = _with_single_output(model, output, normalize)
    scaling, graph = Preprocessing.parse(preprocessing), model.subgraphs[0]
    image = image_input(scaling.mean.tolist(), scaling.std.tolist(), graph.tensors[graph.inputs[0]].type)
    metadata.subgraphMetadata[0].inputTensorMetadata = [image.create_metadata()]
    _write(model, metadata, files, target)


def _read(path: Path) -> tuple[Any, dict[str, bytes]]:
    data = path.read_bytes()
    model, files = split(data)
    try:
        return read_model(model), files
    except JobError:
        raise UsageError(f"{path.name} starts with {data[:8]!r}; expected a TFLite model") from None


def _write(model: Any, metadata: Any, files: dict[str, bytes], target: Path) -> None:
    set_metadata(model, metadata)
    output = io.BytesIO(write_model(model, 0))
    if files:
        with zipfile.ZipFile(output, "a", zipfile.ZIP_STORED) as archive:
            write_files(archive, files)
    target.write_bytes(output.getvalue())


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": _name(tensor), "shape": shape_of(tensor), "type": type_name(tensor)}


def _name(tensor: Any) -> str:
    return (tensor.name or b"").decode(errors="replace")


def _process_units(metadata: Any) -> list[Any]:
    found: list[Any] = []
    for graph in (metadata.subgraphMetadata or []) if metadata else []:
        found += graph.inputProcessUnits or []
        for tensor in graph.inputTensorMetadata or []:
            found += tensor.processUnits or []
    return [unit for unit in found if unit.options is not None]


def _with_single_output(model: Any, output: str, normalize: bool) -> Any:
    """Makes the output float32 [1, dim] and the only one; returns the metadata, which describes it."""
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as metadata_schema
    from tensorflow_lite_support.metadata import schema_py_generated as schema

    graph = model.subgraphs[0]
    names = [_name(graph.tensors[number]) for number in graph.outputs]
    graph.outputs = [int(graph.outputs[names.index(output)])]
    for signature in model.signatureDefs or []:
        signature.outputs = [entry for entry in signature.outputs or [] if entry.tensorIndex == graph.outputs[0]]
    kinds, tensor = schema.BuiltinOperator, graph.tensors[graph.outputs[0]]
    shape, kind = shape_of(tensor), type_name(tensor)
    dim = math.prod(shape)
    if kind != "FLOAT32":
        append_operator(model, kinds.DEQUANTIZE, _DEQUANTIZE_VERSIONS[kind], graph.outputs, shape, None)
    if shape != [1, dim]:
        target = add_constant(model, unused_name(model, b"embedding/shape"), np.array([1, dim], np.int32))
        options = schema.ReshapeOptionsT()
        options.newShape = [1, dim]
        inputs = [graph.outputs[0], target]
        append_operator(model, kinds.RESHAPE, 1, inputs, (1, dim), (schema.BuiltinOptions.ReshapeOptions, options))
    if normalize:
        l2 = schema.BuiltinOptions.L2NormOptions, schema.L2NormOptionsT()
        append_operator(model, kinds.L2_NORMALIZATION, 1, graph.outputs, (1, dim), l2)
    metadata = metadata_of(model)
    if metadata is None:
        metadata = metadata_schema.ModelMetadataT()
        metadata.name = "Encoder"
    if not metadata.subgraphMetadata:
        metadata.subgraphMetadata = [metadata_schema.SubGraphMetadataT()]
    metadata.subgraphMetadata[0].outputTensorMetadata = [_tensor_metadata("embedding", "L2-normalised embedding.")]
    return metadata


def _describe_bert(model: Any, described: Any, _: str | None) -> None:
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info

    graph = model.subgraphs[0]
    meanings = {accepted: name for name, names in _BERT_INPUTS.items() for accepted in names}
    names = [plain_name(_name(graph.tensors[number])) for number in graph.inputs]
    described.inputTensorMetadata = [_tensor_metadata(meanings[name], "") for name in names]
    described.inputProcessUnits = [metadata_info.BertTokenizerMd("vocab.txt").create_metadata()]


def _describe_regex(_: Any, described: Any, regex: str | None) -> None:
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info

    tensor = _tensor_metadata("ids", "Token ids of the text.")
    tensor.processUnits = [metadata_info.RegexTokenizerMd(regex, "vocab.txt").create_metadata()]
    described.inputTensorMetadata = [tensor]


def bert_inputs(names: list[str]) -> bool:
    """Returns whether these are the names of a BERT model's three inputs, in any order."""
    plain = [plain_name(name) for name in names]
    return len(plain) == len(_BERT_INPUTS) and all(
        any(name in accepted for name in plain) for accepted in _BERT_INPUTS.values()
    )


def _tensor_metadata(name: str, description: str) -> Any:
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema

    tensor = schema.TensorMetadataT()
    tensor.name, tensor.description = name, description
    return tensor


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    model = Path(request["model"])
    try:
        return _answer(request, model)
    except SearchforgeError:
        raise
    except Exception as error:  # damaged offsets make the generated readers raise errors of any type
        raise UsageError(
            f"{model.name} cannot be read ({type(error).__name__}: {error}); expected a TFLite model"
        ) from None


def _answer(request: dict[str, Any], model: Path) -> dict[str, Any]:
    if request["do"] == "describe":
        return describe(model)
    common = model, Path(request["target"]), request["output"], request["normalize"]
    if request["do"] == "rewrite_image":
        rewrite_image(*common, request["preprocessing"])
    else:
        vocabulary = Path(request["vocabulary"]) if request["vocabulary"] else None
        rewrite_text(*common, vocabulary, request["regex"])
    return {}


if __name__ == "__main__":
    isolated.serve(_handle)
