"""Description of an encoder bundle, `encoder.json`: its towers and the fingerprint of their embedding space."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

IMAGE_SAVED_MODEL = "image_encoder"
TEXT_SAVED_MODEL = "text_encoder"
IMAGE_TFLITE = "image_encoder.tflite"
TEXT_TFLITE = "text_encoder.tflite"

InputKind = Literal["text", "image"]
"""Kind of input of an encoder, and of the queries of a searcher."""

SAVED_MODELS: dict[InputKind, str] = {"text": TEXT_SAVED_MODEL, "image": IMAGE_SAVED_MODEL}
"""Name of the SavedModel for each kind of input."""

TFLITE_FILES: dict[InputKind, str] = {"text": TEXT_TFLITE, "image": IMAGE_TFLITE}
"""Name of the TFLite encoder for each kind of input."""


class EncoderInfo(BaseModel):
    """Contents of encoder.json.

    A bundle embeds texts, images or both. A trained one also has SavedModels with one signature, `serving_default`:
      image_encoder: images uint8 [n, h, w, 3] (decoded and resized) -> embedding float32 [n, dim], L2-normalised.
      text_encoder: texts string [n] -> embedding float32 [n, dim], L2-normalised.

    Attributes:
      fingerprint: Hash of both towers' weights and the preprocessing string; it identifies the embedding space.
      preprocessing: Preprocessing string, see searchforge.preprocessing.
      dim: Dimension of the embedding space.
      image_tower, text_tower: Origin of each encoder: the tower that was trained, or the imported file's name; empty if
        the bundle does not embed this kind of input.
      sequence_length: Number of tokens that the text encoder reads; 0 if the model contains its tokenizer.
      files: SHA-256 of every file of the bundle by path.
      report: Report of the training (settings, seconds, losses, retrieval of held-out captions) or of the import.
      license: License of the encoder, as its author or importer states it; empty if unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    id: str
    fingerprint: str
    preprocessing: str
    dim: int = Field(gt=0)
    image_tower: str
    text_tower: str
    sequence_length: int = Field(ge=0)
    files: dict[str, str]
    report: dict[str, Any]
    license: str = ""

    @property
    def kinds(self) -> tuple[InputKind, ...]:
        """Kinds of input that the bundle embeds."""
        return tuple(kind for kind, name in TFLITE_FILES.items() if name in self.files)

    def has_saved_model(self, kind: InputKind) -> bool:
        """Returns whether the bundle has a SavedModel for a kind of input, as trained ones do."""
        return any(name.startswith(f"{SAVED_MODELS[kind]}/") for name in self.files)
