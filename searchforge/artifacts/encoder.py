"""The encoder bundle's description, `encoder.json`: what the towers are, and the fingerprint of their space."""

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
      fingerprint: hash of both towers' weights and the preprocessing string; names the embedding space.
      preprocessing: see searchforge.preprocessing.
      sequence_length: tokens that the text encoder reads; 0 where the model tokenizes by itself.
      files: SHA-256 of every file of the bundle by its path.
      report: what training measured: settings, seconds, losses, retrieval of held-out captions.
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
