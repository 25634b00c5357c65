"""Exports the encoders: SavedModels for servers and batch jobs, TensorFlow Lite for phones.

    image_encoder/        images uint8 [n, h, w, 3] -> {"embedding": float32 [n, dim]}
    text_encoder/         texts string [n] -> {"embedding": float32 [n, dim]}
    image_encoder.tflite  image float32 [1, h, w, 3], scaled by the metadata -> [1, dim]; float16 weights
    text_encoder.tflite   ids, mask, segment_ids int32 [1, length] (or one string [1]) -> [1, dim]; length is the
                          encoder's sequence length, or dynamic with `dynamic_int8`

All embeddings are L2-normalised in the graph. Loading text_encoder/ requires importing tensorflow_text.

Quantizations of a text encoder: `float32`; `float16` (float16 weights, float32 computation); `dynamic_int8` (8-bit
weights, activations quantized at run time); `int8` (static 8-bit dense layers, calibrated on texts; the fastest).
`int8` is not available for models with a built-in tokenizer.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from searchforge.artifacts.encoder import IMAGE_SAVED_MODEL, IMAGE_TFLITE, TEXT_SAVED_MODEL
from searchforge.errors import JobError, UsageError
from searchforge.processes import isolated
from trainer.export.tflite_metadata import SENTENCEPIECE, TASK_LIBRARY_SENTENCEPIECE
from trainer.towers import ImageTower, TextTower
from trainer.towers.layers import ActivationRanges, observe_ranges, trace_for_device

Quantization = Literal["int8", "dynamic_int8", "float16", "float32"]


Projection = Callable[[tf.Tensor], tf.Tensor]
"""Projection head: maps features, float32 [n, d], to embeddings, float32 [n, dim]."""

_METADATA = "trainer.export.tflite_metadata"


class ImageEncoder(tf.Module):
    """An image tower with its projection head."""

    def __init__(self, tower: ImageTower, head: Projection) -> None:
        super().__init__(name="image_encoder")
        self._tower, self._head = tower, head

    def save(self, folder: Path) -> None:
        """Writes the SavedModel."""
        preprocessing = self._tower.preprocessing

        @tf.function(input_signature=[tf.TensorSpec([None, *self._size, 3], tf.uint8, name="images")])
        def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
            scaled = (tf.cast(images, tf.float32) - preprocessing.mean) / preprocessing.std
            return {"embedding": self._head(self._tower(scaled))}

        _save(self, serve, folder)

    def save_tflite(self, path: Path) -> None:
        """Writes the TFLite model with metadata for the ImageEmbedder and the ImageSearcher."""

        @tf.function(input_signature=[tf.TensorSpec([1, *self._size, 3], tf.float32, name="image")])
        def embed(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"embedding": self._head(self._tower(image))}

        path.write_bytes(_convert(self, embed, "float16", "image tower"))
        preprocessing = self._tower.preprocessing
        scaling = {"mean": preprocessing.mean.tolist(), "std": preprocessing.std.tolist()}
        isolated.call(_METADATA, {"do": "describe_image", "model": str(path), **scaling})

    @property
    def _size(self) -> tuple[int, int]:
        return self._tower.preprocessing.height, self._tower.preprocessing.width


class TextEncoder(tf.Module):
    """A text tower with its projection head."""

    def __init__(self, tower: TextTower, head: Projection) -> None:
        super().__init__(name="text_encoder")
        self._tower, self._head = tower, head

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Embeds texts, string [n], as float32 [n, dim]."""
        return self._head(self._tower(texts))

    def save(self, folder: Path) -> None:
        """Writes the SavedModel."""

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="texts")])
        def serve(texts: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"embedding": self(texts)}

        _save(self, serve, folder)

    def save_tflite(self, path: Path, quantization: Quantization, calibration: Sequence[str] = ()) -> None:
        """Writes the TFLite model with metadata for the TextEmbedder and the TextSearcher.

        Args:
          path: The file to write.
          quantization: See the module's documentation.
          calibration: Representative queries, from which `int8` takes its activation ranges.

        Raises:
          UsageError: The quantization is not available for this tower.
          JobError: The tower uses operations that the Task Library does not support.
        """
        tokenizer = self._tower.tokenizer
        length = self._tower.sequence_length
        ranges: ActivationRanges | None = None
        if tokenizer is None:
            if quantization == "int8":
                raise UsageError(
                    "train.text_quantization is int8, which is not available for a text tower with a built-in "
                    f"tokenizer; omit the setting, or use one of {', '.join(self.quantizations)}"
                )
            specs = [tf.TensorSpec([1], tf.string, name="text")]
            run: Any = self._tower.__call__
        else:
            # The Task Library neither pads nor truncates the tokens of a model with a dynamic length. That is faster
            # for a model without XNNPACK; a static shape enables XNNPACK, which is faster still.
            dynamic = quantization == "dynamic_int8"
            shape = [1, None if dynamic else length]
            specs = [tf.TensorSpec(shape, tf.int32, name=name) for name in ("ids", "mask", "segment_ids")]
            if quantization == "int8":
                ranges = self._observe(calibration)

            def run(*tokens: tf.Tensor) -> tf.Tensor:
                return self._tower.encode(*((_truncated(part, length) for part in tokens) if dynamic else tokens))

        @tf.function(input_signature=specs)
        def embed(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"embedding": self._head(run(*inputs))}

        path.write_bytes(_convert(self, embed, quantization, "text tower", ranges))
        vocabulary = str(tokenizer.vocabulary) if tokenizer else None
        isolated.call(_METADATA, {"do": "describe_text", "model": str(path), "vocabulary": vocabulary})

    @property
    def quantizations(self) -> tuple[Quantization, ...]:
        """Quantizations that `save_tflite` supports for this tower, fastest first."""
        return get_args(Quantization) if self._tower.tokenizer else get_args(Quantization)[1:]

    def _observe(self, texts: Sequence[str]) -> ActivationRanges:
        """Runs the calibration texts without padding and returns the activation ranges of all dense layers."""
        if not texts:
            raise ValueError("int8 needs calibration texts")
        assert self._tower.tokenizer
        ids, mask, segment_ids = self._tower.tokenizer(tf.constant(list(texts)), self._tower.sequence_length)
        lengths = mask.numpy().sum(1)
        ranges = ActivationRanges()
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            with observe_ranges(ranges):
                self._head(
                    self._tower.encode(*(tf.gather(part, rows)[:, :length] for part in (ids, mask, segment_ids)))
                )
        return ranges


def export(folder: Path, images: ImageEncoder, texts: TextEncoder) -> None:
    """Writes both SavedModels and the image encoder's TFLite model; for text see `TextEncoder.save_tflite`.

    Raises:
      JobError: The image tower cannot be converted for the Task Library.
    """
    images.save(folder / IMAGE_SAVED_MODEL)
    texts.save(folder / TEXT_SAVED_MODEL)
    images.save_tflite(folder / IMAGE_TFLITE)


def _truncated(tokens: tf.Tensor, length: int) -> tf.Tensor:
    """Truncates tokens [1, any] to at most `length`, and keeps the last one, which is [SEP]."""
    kept = tf.minimum(tf.shape(tokens)[1], length)
    return tf.concat([tokens[:, : kept - 1], tokens[:, -1:]], 1)


def _save(module: tf.Module, serve: Any, folder: Path) -> None:
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    # The file is random and unused; without it, the same weights give the same files.
    (folder / "fingerprint.pb").unlink(missing_ok=True)


def _convert(
    module: tf.Module, function: Any, quantization: Quantization, what: str, ranges: ActivationRanges | None = None
) -> bytes:
    with trace_for_device(ranges):
        concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if quantization != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    converter.allow_custom_ops = what == "text tower"  # the Task Library supports tensorflow_text's tokenizers
    try:
        with _stderr_silenced():
            model: bytes = converter.convert()
    except Exception as error:  # errors of the converter and of MLIR
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise JobError(
            f"the {what} cannot be converted to TensorFlow Lite with the operations that the Task Library supports: "
            f"{reason}; choose another tower"
        ) from error
    return _renamed_tokenizer(model)


def _renamed_tokenizer(model: bytes) -> bytes:
    """Renames the SentencePiece operation to its name in the Task Library."""
    from tensorflow.lite.tools import flatbuffer_utils

    if SENTENCEPIECE not in model:
        return model
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    for code in parsed.operatorCodes:
        if code.customCode == SENTENCEPIECE:
            code.customCode = TASK_LIBRARY_SENTENCEPIECE
    return bytes(flatbuffer_utils.convert_object_to_bytearray(parsed))


@contextlib.contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Silences stderr, including the messages of the converter's native code."""
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as devnull, contextlib.redirect_stderr(io.StringIO()):
        os.dup2(devnull.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
