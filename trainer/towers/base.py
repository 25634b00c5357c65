"""Defines the interfaces of image towers and text towers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from searchforge.errors import UsageError
from searchforge.preprocessing import Preprocessing
from trainer.towers.minilm import BertTokenizer

Layers = Literal["last", "several"]
"""Layers of a packaged tower that provide features: only the last one, or several."""

DEFAULT_SIZE = 224
"""Image width and height in pixels for models that take any size."""


@dataclass(frozen=True)
class TowerSpec:
    """Specification that determines a tower.

    Attributes:
      modality: `image` or `text`.
      name: Name in the configuration; see trainer.towers.
      layers: See Layers; applies only to packaged towers.
      sequence_length: Maximum number of tokens that a text tower reads.
    """

    modality: Literal["image", "text"]
    name: str
    layers: Layers = "last"
    sequence_length: int = 32


class Tower(tf.Module):
    """Base class of image towers and text towers.

    Attributes:
      width: Length of a feature vector.
      fingerprint: Hash of the weights and of the computation.
    """

    width: int
    fingerprint: str

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        """Returns the variables that fine-tuning may change, by name.

        Args:
          last: Number of blocks or layers at the tower's end; None for the whole tower.

        Raises:
          UsageError: The tower has no such part, or no trainable variables.
        """
        raise UsageError("this tower cannot be fine-tuned; leave it frozen (train.tune_image, train.tune_text)")

    def assign(self, weights: Mapping[str, Any]) -> None:
        """Sets some of the `tunable_variables`, and updates the fingerprint if there are any."""
        if not weights:
            return
        variables = self.tunable_variables()
        for name, value in weights.items():
            variables[name].assign(value)
        self.fingerprint = hash_variables(variables.values(), f"{self.fingerprint} tuned")


class ImageTower(Tower):
    """Maps images to features.

    Attributes:
      preprocessing: Preprocessing of this tower's input.
    """

    preprocessing: Preprocessing

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Maps scaled images, float32 [n, h, w, 3], to features, float32 [n, width]."""
        raise NotImplementedError


class TextTower(Tower):
    """Maps texts to features.

    Attributes:
      sequence_length: Maximum number of tokens; 0 for a model with a built-in tokenizer.
      tokenizer: Tokenizer of the texts; None for a model with a built-in tokenizer.
    """

    sequence_length: int = 0
    tokenizer: BertTokenizer | None = None

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Maps texts, string [n], to features, float32 [n, width]."""
        assert self.tokenizer is not None
        ids, mask, segment_ids = self.tokenizer(texts, self.sequence_length)
        longest = tf.reduce_max(tf.reduce_sum(mask, 1))  # padding beyond the longest text would only cost time
        return self.encode(ids[:, :longest], mask[:, :longest], segment_ids[:, :longest])

    def encode(self, ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> tf.Tensor:
        """Maps tokens, int32 [n, length] each, to features, float32 [n, width]; only for towers with a tokenizer."""
        raise NotImplementedError


def hash_variables(variables: Iterable[tf.Variable], computation: str) -> str:
    """Returns the fingerprint of weights and of a text that identifies the computation."""
    digest = hashlib.sha256(computation.encode())
    for variable in sorted(variables, key=lambda v: v.name):
        value = variable.numpy()
        digest.update(f"{variable.name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
