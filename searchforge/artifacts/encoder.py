"""Description of an encoder bundle, `encoder.json`: its towers and the fingerprint of their embedding space."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

IMAGE_SAVED_MODEL = "image_encoder"
TEXT_SAVED_MODEL = "text_encoder"
IMAGE_TFLITE = "image_encoder.tflite"
TEXT_TFLITE = "text_encoder.tflite"


class EncoderInfo(BaseModel):
    """Contents of encoder.json.

    The bundle's SavedModels have one signature each, `serving_default`:
      image_encoder: images uint8 [n, h, w, 3] (decoded and resized) -> embedding float32 [n, dim], L2-normalised.
      text_encoder: texts string [n] -> embedding float32 [n, dim], L2-normalised.

    Attributes:
      fingerprint: Hash of both towers' weights and the preprocessing string; it identifies the embedding space.
      preprocessing: Preprocessing string, see searchforge.preprocessing.
      dim: Dimension of the embedding space.
      sequence_length: Number of tokens that the text encoder reads; 0 if the model contains its tokenizer.
      files: SHA-256 of every file of the bundle by path.
      report: Training report: settings, seconds, losses, retrieval of held-out captions.
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
