"""The trainable part of the dual encoder: two heads and a temperature, and one step of their training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from searchforge.config import TrainConfig
from trainer.heads import Head, ResidualHead, WideHead, split_seed
from trainer.loss import info_nce, over_global_batch, soft_target_loss

Array = npt.NDArray[Any]

MIN_TEMPERATURE = 0.01
"""Of a learned temperature; CLIP's bound."""


class DualEncoder(tf.Module):
    """Image head, text head and temperature.

    Attributes:
      image_head, text_head: see trainer.heads.
      log_temperature: float32 scalar; trained or not.
    """

    def __init__(self, config: TrainConfig, image_width: int, text_width: int) -> None:
        super().__init__(name="dual_encoder")
        self.image_head: Head
        self.text_head: Head
        if config.preset == "recipe2022":
            self.image_head = ResidualHead(image_width, config.dim, config.seed, "image")
            self.text_head = ResidualHead(text_width, config.dim, config.seed + 1, "text")
            self._loss = soft_target_loss
        else:
            self.image_head = WideHead(image_width, config.dim, config.seed, "image", 0.2, 0.5)
            self.text_head = WideHead(text_width, config.dim, config.seed + 1, "text", 0.1, 0.3)
            self._loss = info_nce
        initial = np.float32(np.log(config.temperature))
        self.log_temperature = tf.Variable(initial, trainable=config.learn_temperature, name="log_temperature")

    def standardize(self, image_features: Array, text_features: Array) -> None:
        """Gives heads that z-score their input the statistics of the training features, float32 [n, d] each."""
        for head, features in ((self.image_head, image_features), (self.text_head, text_features)):
            if isinstance(head, WideHead):
                head.standardize(features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64))

    @property
    def temperature(self) -> tf.Tensor:
        """Float32 scalar."""
        return tf.maximum(tf.exp(self.log_temperature), MIN_TEMPERATURE)

    def loss(
        self, images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, dropout_seed: tf.Tensor | None
    ) -> tf.Tensor:
        """This worker's share of the loss over the global batch; call it inside `strategy.run`.

        Args:
          images: float32 [n, image width], features of this worker's part of the batch.
          texts: float32 [n, k, text width], features of k captions of each.
          text_ids: int32 [n, k], equal where captions read the same.
          dropout_seed: int32 [2], or None for no dropout.
        """
        image_seed, text_seed = split_seed(dropout_seed)
        shape = tf.shape(texts)
        flat = self.text_head(tf.reshape(texts, [shape[0] * shape[1], texts.shape[2]]), text_seed)
        embedded = tf.reshape(flat, [shape[0], shape[1], flat.shape[-1]])
        return over_global_batch(self._loss, self.image_head(images, image_seed), embedded, text_ids, self.temperature)

    def state(self) -> dict[str, Array]:
        """Returns all weights by name, trained or not."""
        return {name: variable.numpy() for name, variable in self._named().items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Sets the weights to what `state()` returned."""
        for name, variable in self._named().items():
            variable.assign(state[name])

    def _named(self) -> dict[str, tf.Variable]:
        heads = {"image": self.image_head, "text": self.text_head}
        named = {f"{part}/{v.name}": v for part, head in heads.items() for v in head.variables}
        return {**named, "log_temperature": self.log_temperature}


def gradient_step(
    strategy: tf.distribute.Strategy, model: DualEncoder
) -> Callable[..., tuple[tf.Tensor, list[tf.Tensor]]]:
    """Returns a function of `DualEncoder.loss`'s arguments: the loss over the global batch and its gradients.

    Both are summed over all workers, so that every worker gets the same; gradients are in the order of
    `model.trainable_variables`. The strategy must have one replica a worker.
    """

    def replica_step(*batch: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            share = model.loss(*batch)
        gradients = tape.gradient(share, model.trainable_variables)
        context = tf.distribute.get_replica_context()
        total, *summed = context.all_reduce(tf.distribute.ReduceOp.SUM, [share, *gradients])
        return total, summed

    def step(*batch: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        total, gradients = strategy.run(replica_step, args=batch)
        return total, gradients

    return step
