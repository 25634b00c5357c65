"""Writes the TFLite metadata by which the Task Library tokenizes texts and scales images.

Runs in a separate process without TensorFlow (`searchforge.processes.isolated`). Each request is a JSON object:

    {"do": "describe_text", "model": path, "vocabulary": path or null}
    {"do": "describe_image", "model": path, "mean": [pixel values], "std": [pixel values]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from searchforge.artifacts.associated_files import without_dates
from searchforge.processes import isolated

IMPORTS = ("tensorflow_lite_support.metadata.python.metadata_writers.bert_nl_classifier",)
"""Modules that the fork server imports once for all processes; see searchforge.processes.fork_server."""

SENTENCEPIECE, TASK_LIBRARY_SENTENCEPIECE = b"TFText>FastSentencepieceTokenize", b"TFSentencepieceTokenizeOp"
"""Name of the SentencePiece operation in models that TensorFlow converts, and in the Task Library."""


def describe_text(model: Path, vocabulary: Path | None) -> None:
    """Adds the metadata of a text encoder: a BertTokenizer, or no tokenizer if the model takes strings."""
    from tensorflow_lite_support.metadata.python.metadata_writers import (
        bert_nl_classifier,
        metadata_info,
        metadata_writer,
    )

    general = metadata_info.GeneralMd(name="TextEmbedder", description="Embeds a text for searching images.")
    buffer = bytearray(model.read_bytes())
    if vocabulary is None:
        writer = metadata_writer.MetadataWriter.create_from_metadata_info(
            buffer, general, [metadata_info.InputTextTensorMd("text", "The text to embed.")], [_output(metadata_info)]
        )
    else:
        ids, mask, segment_ids = _bert_inputs(buffer)
        tokenizer = metadata_info.BertTokenizerMd(str(vocabulary))
        inputs = metadata_info.BertInputTensorsMd(
            buffer, ids, mask, segment_ids, ids_md=None, mask_md=None, segment_ids_md=None, tokenizer_md=tokenizer
        )
        writer = bert_nl_classifier.MetadataWriter.create_from_metadata_info(
            buffer, general, inputs, _output(metadata_info)
        )
    model.write_bytes(without_dates(writer.populate()))


def describe_image(model: Path, mean: list[float], std: list[float]) -> None:
    """Adds the metadata of an image encoder, by which the device computes (pixel - mean) / std."""
    from tensorflow_lite_support.metadata import schema_py_generated as model_schema
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info, metadata_writer

    image = image_input(mean, std, model_schema.TensorType.FLOAT32)
    general = metadata_info.GeneralMd(name="ImageEmbedder", description="Embeds an image for searching images.")
    writer = metadata_writer.MetadataWriter.create_from_metadata_info(
        bytearray(model.read_bytes()), general, [image], [_output(metadata_info)]
    )
    model.write_bytes(writer.populate())


def image_input(mean: list[float], std: list[float], tensor_type: int) -> Any:
    """Returns the InputImageTensorMd of an encoder whose input, of a TensorType, is (pixel - mean) / std."""
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info

    description = "The image to embed, stretched to the input size."
    return metadata_info.InputImageTensorMd("image", description, mean, std, schema.ColorSpaceType.RGB, tensor_type)


def plain_name(name: str) -> str:
    """Returns `ids` for the names that TensorFlow gives to this input, such as `serving_default_ids:0`."""
    return name.removeprefix("serving_default_").partition(":")[0]


def _output(metadata_info: Any) -> Any:
    return metadata_info.TensorMd("embedding", "L2-normalised embedding.")


def _bert_inputs(buffer: bytearray) -> list[str]:
    from tensorflow_lite_support.metadata.python.metadata_writers import writer_utils

    names = writer_utils.get_input_tensor_names(buffer)
    plain = {plain_name(name): name for name in names}
    return [plain[key] for key in ("ids", "mask", "segment_ids")]


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    model = Path(request["model"])
    if request["do"] == "describe_text":
        describe_text(model, Path(request["vocabulary"]) if request["vocabulary"] else None)
        return {}
    describe_image(model, request["mean"], request["std"])
    return {}


if __name__ == "__main__":
    isolated.serve(_handle)
