"""The trainable part of the dual encoder: pairs of heads and a temperature, and one step of their training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from searchforge.config import TrainConfig
from trainer.model.loss import info_nce, over_global_batch, soft_target_loss
from trainer.model.projection_heads import Head, ResidualHead, WideHead, split_seed

Array = npt.NDArray[Any]

MIN_TEMPERATURE = 0.01
"""Of a learned temperature; CLIP's bound."""


def new_heads(config: TrainConfig, modality: Literal["image", "text"], width: int) -> list[Head]:
    """Returns `config.ensemble_size` untrained heads of one modality for features of a width."""
    seeds = [(config.seed, member, int(modality == "text")) for member in range(config.ensemble_size)]
    if config.preset == "recipe2022":
        return [ResidualHead(width, config.dim, seed, modality) for seed in seeds]
    rates = {"image": (0.2, 0.5), "text": (0.1, 0.3)}[modality]
    return [WideHead(width, config.dim, seed, modality, *rates) for seed in seeds]


class DualEncoder(tf.Module):
    """Pairs of an image head and a text head, which learn side by side, and their temperature.

    Pairs share nothing but the temperature: each has initial weights, dropout and batches of its own.
    `trainer.model.ensemble` makes one encoder of them.

    Attributes:
      image_heads, text_heads: see trainer.model.projection_heads; `config.ensemble_size` of each.
      log_temperature: float32 scalar; trained or not.
    """

    def __init__(self, config: TrainConfig, image_width: int, text_width: int) -> None:
        super().__init__(name="dual_encoder")
        self.image_heads = new_heads(config, "image", image_width)
        self.text_heads = new_heads(config, "text", text_width)
        self._loss = soft_target_loss if config.preset == "recipe2022" else info_nce
        initial = np.float32(np.log(config.temperature))
        self.log_temperature = tf.Variable(initial, trainable=config.learn_temperature, name="log_temperature")

    def standardize(self, image_features: Array, text_features: Array) -> None:
        """Gives heads that z-score their input the statistics of the training features, float32 [n, d] each."""
        for heads, features in ((self.image_heads, image_features), (self.text_heads, text_features)):
            mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
            for head in heads:
                if isinstance(head, WideHead):
                    head.standardize(mean, std)

    @property
    def temperature(self) -> tf.Tensor:
        """Float32 scalar."""
        return tf.maximum(tf.exp(self.log_temperature), MIN_TEMPERATURE)

    def loss(
        self, images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, dropout_seed: tf.Tensor | None
    ) -> tf.Tensor:
        """This worker's share of the loss over the global batch; call it inside `strategy.run`.

        Axis m has a batch for each pair of heads, or one for all of them.

        Args:
          images: float32 [n, m, image width], features of this worker's part of the batch.
          texts: float32 [n, m, k, text width], features of k captions of each.
          text_ids: int32 [n, m, k], equal where captions read the same.
          dropout_seed: int32 [2], or None for no dropout.

        Returns:
          The mean over the pairs.
        """
        embedded = self.embed(images, texts, dropout_seed)
        return over_global_batch(self.compare, *embedded, self._for_all(text_ids), self.temperature)

    def embed(self, images: tf.Tensor, texts: tf.Tensor, dropout_seed: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns each pair's embeddings, float32 [n, pairs, dim] and [n, pairs, k, dim]; arguments as of `loss`."""
        seeds = split_seed(dropout_seed, 2 * len(self.image_heads))
        images, texts = self._for_all(images), self._for_all(texts)
        shape = tf.shape(texts)
        found_images, found_texts = [], []
        for member, (image_head, text_head) in enumerate(zip(self.image_heads, self.text_heads, strict=True)):
            found_images.append(image_head(images[:, member], seeds[2 * member]))
            flat = text_head(tf.reshape(texts[:, member], [-1, texts.shape[-1]]), seeds[2 * member + 1])
            found_texts.append(tf.reshape(flat, [shape[0], shape[2], flat.shape[-1]]))
        return tf.stack(found_images, 1), tf.stack(found_texts, 1)

    def compare(self, images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        """The mean loss of the pairs over a whole batch, of what `embed` returned."""
        losses = [
            self._loss(images[:, member], texts[:, member], text_ids[:, member], temperature)
            for member in range(len(self.image_heads))
        ]
        return tf.add_n(losses) / len(losses)

    def state(self) -> dict[str, Array]:
        """Returns all weights by name, trained or not."""
        return {name: variable.numpy() for name, variable in self._named().items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Sets the weights to what `state()` returned."""
        for name, variable in self._named().items():
            variable.assign(state[name])

    def _for_all(self, batch: tf.Tensor) -> tf.Tensor:
        return batch if batch.shape[1] == len(self.image_heads) else tf.repeat(batch, len(self.image_heads), 1)

    def _named(self) -> dict[str, tf.Variable]:
        parts = {"image": self.image_heads, "text": self.text_heads}
        named = {
            f"{part}{i}/{v.name}": v for part, heads in parts.items() for i, h in enumerate(heads) for v in h.variables
        }
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
