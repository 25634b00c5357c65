"""What every tower is: from pixels or texts to one feature vector each."""

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
"""Which layers of a packaged tower feed the head: the last one only, or earlier ones as well."""

DEFAULT_SIZE = 224
"""Pixels a side, for models that take images of any size."""


@dataclass(frozen=True)
class TowerSpec:
    """Everything that a tower is built from.

    Attributes:
      modality: `image` or `text`.
      name: as in the configuration; see trainer.towers.
      layers: see Layers; other than packaged towers have one output only.
      sequence_length: tokens that a text tower reads.
    """

    modality: Literal["image", "text"]
    name: str
    layers: Layers = "last"
    sequence_length: int = 32


class Tower(tf.Module):
    """What image and text towers have in common.

    Attributes:
      width: of a feature vector.
      fingerprint: hash of the weights and of what is computed from them.
    """

    width: int
    fingerprint: str

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        """Returns the variables that training may change, by name.

        Args:
          last: of how many blocks or layers at the tower's end; None: of the whole tower.

        Raises:
          UsageError: the tower has no such part, or nothing in it can be trained.
        """
        raise UsageError("this tower cannot be tuned; leave it frozen (train.tune_image, train.tune_text)")

    def assign(self, weights: Mapping[str, Any]) -> None:
        """Replaces variables of `tunable_variables` by arrays; with any, the fingerprint becomes another one."""
        if not weights:
            return
        variables = self.tunable_variables()
        for name, value in weights.items():
            variables[name].assign(value)
        self.fingerprint = hash_variables(variables.values(), f"{self.fingerprint} tuned")


class ImageTower(Tower):
    """Images to features.

    Attributes:
      preprocessing: how pixels become this tower's input.
    """

    preprocessing: Preprocessing

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 [n, width]; images are float32 [n, h, w, 3], already scaled."""
        raise NotImplementedError


class TextTower(Tower):
    """Texts to features.

    Attributes:
      sequence_length: tokens that are read; 0 where the model tokenizes by itself.
      tokenizer: None where the model tokenizes by itself.
    """

    sequence_length: int = 0
    tokenizer: BertTokenizer | None = None

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns float32 [n, width] for string [n]."""
        assert self.tokenizer is not None
        ids, mask, segment_ids = self.tokenizer(texts, self.sequence_length)
        longest = tf.reduce_max(tf.reduce_sum(mask, 1))  # padding beyond it changes nothing but the time
        return self.encode(ids[:, :longest], mask[:, :longest], segment_ids[:, :longest])

    def encode(self, ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> tf.Tensor:
        """Returns float32 [n, width] for tokens, int32 [n, length] each; of towers with a tokenizer."""
        raise NotImplementedError


def hash_variables(variables: Iterable[tf.Variable], about: str) -> str:
    """Returns a fingerprint of weights and of a text that says what is done with them."""
    digest = hashlib.sha256(about.encode())
    for variable in sorted(variables, key=lambda v: v.name):
        value = variable.numpy()
        digest.update(f"{variable.name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
