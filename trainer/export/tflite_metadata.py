"""Writes TFLite metadata, and runs the encoders with the TFLite Task Library, as a phone does.

Runs in a separate process without TensorFlow (`searchforge.processes.isolated`). Each request is a JSON object:

    {"do": "describe_text", "model": path, "vocabulary": path or null}
    {"do": "describe_image", "model": path, "mean": pixel value, "std": pixel values}
    {"do": "embed_texts", "model": path, "texts": [...], "output": .npy path}
    {"do": "embed_images", "model": path, "images": .npy path of uint8 [n, h, w, 3], "output": .npy path}

Embeddings are written as float32 [n, dim]; the response has `ms`, the median milliseconds per input on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from searchforge.artifacts.associated_files import without_dates
from searchforge.errors import JobError
from searchforge.processes import isolated

IMPORTS = (
    "tflite_support.task",
    "tensorflow_lite_support.metadata.python.metadata_writers.bert_nl_classifier",
)
"""Modules that the fork server imports once for all processes; see searchforge.processes.fork_server."""


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


def describe_image(model: Path, mean: float, std: float) -> None:
    """Adds the metadata of an image encoder, by which the device computes (pixel - mean) / std."""
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema
    from tensorflow_lite_support.metadata import schema_py_generated as model_schema
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info, metadata_writer

    image = metadata_info.InputImageTensorMd(
        "image",
        "The image to embed, stretched to the input size.",
        [mean],
        [std],
        schema.ColorSpaceType.RGB,
        model_schema.TensorType.FLOAT32,
    )
    general = metadata_info.GeneralMd(name="ImageEmbedder", description="Embeds an image for searching images.")
    writer = metadata_writer.MetadataWriter.create_from_metadata_info(
        bytearray(model.read_bytes()), general, [image], [_output(metadata_info)]
    )
    model.write_bytes(writer.populate())


def embed_texts(model: Path, texts: list[str], output: Path) -> dict[str, Any]:
    """Embeds texts with the TextEmbedder."""
    from tflite_support.task import core, text

    options = text.TextEmbedderOptions(core.BaseOptions(file_name=str(model), num_threads=1))
    embedder = _open(model, lambda: text.TextEmbedder.create_from_options(options))
    return _embed(embedder.embed, texts, output)


def embed_images(model: Path, images: Path, output: Path) -> dict[str, Any]:
    """Embeds images with the ImageEmbedder."""
    from tflite_support.task import core, vision

    options = vision.ImageEmbedderOptions(core.BaseOptions(file_name=str(model), num_threads=1))
    embedder = _open(model, lambda: vision.ImageEmbedder.create_from_options(options))
    pixels = np.load(images, allow_pickle=False)
    tensors = [vision.TensorImage.create_from_array(np.ascontiguousarray(image)) for image in pixels]
    return _embed(embedder.embed, tensors, output)


def _output(metadata_info: Any) -> Any:
    return metadata_info.TensorMd("embedding", "L2-normalised embedding.")


def _bert_inputs(buffer: bytearray) -> list[str]:
    from tensorflow_lite_support.metadata.python.metadata_writers import writer_utils

    names = writer_utils.get_input_tensor_names(buffer)
    # TensorFlow names an input `serving_default_ids:0` or `ids`. Match whole names: `segment_ids` also ends with `ids`.
    plain = {name.removeprefix("serving_default_").partition(":")[0]: name for name in names}
    return [plain[key] for key in ("ids", "mask", "segment_ids")]


def _open(model: Path, create: Callable[[], Any]) -> Any:
    try:
        return create()
    except (RuntimeError, ValueError) as error:
        raise JobError(f"the TFLite Task Library cannot run {model.name}: {error}") from error


def _embed(embed: Callable[[Any], Any], inputs: list[Any], output: Path) -> dict[str, Any]:
    vectors, milliseconds = [], []
    for value in inputs:
        start = time.perf_counter()
        result = embed(value)
        milliseconds.append(1000 * (time.perf_counter() - start))
        vectors.append(np.array(result.embeddings[0].feature_vector.value, np.float32))
    np.save(output, np.stack(vectors), allow_pickle=False)
    return {"ms": statistics.median(milliseconds)}


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    model = Path(request["model"])
    if request["do"] == "describe_text":
        describe_text(model, Path(request["vocabulary"]) if request["vocabulary"] else None)
        return {}
    if request["do"] == "describe_image":
        describe_image(model, request["mean"], request["std"])
        return {}
    if request["do"] == "embed_texts":
        return embed_texts(model, request["texts"], Path(request["output"]))
    return embed_images(model, Path(request["images"]), Path(request["output"]))


if __name__ == "__main__":
    isolated.serve(_handle)
