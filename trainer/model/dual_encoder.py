"""Defines the trainable part of the dual encoder: an ensemble of head pairs with a shared temperature."""

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
"""Lower bound of a learned temperature, as in CLIP."""


def new_heads(config: TrainConfig, modality: Literal["image", "text"], width: int) -> list[Head]:
    """Returns `config.ensemble_size` untrained heads of one modality, for features of length `width`."""
    seeds = [(config.seed, member, int(modality == "text")) for member in range(config.ensemble_size)]
    if config.preset == "recipe2022":
        return [ResidualHead(width, config.dim, seed, modality) for seed in seeds]
    rates = {"image": (0.2, 0.5), "text": (0.1, 0.3)}[modality]
    return [WideHead(width, config.dim, seed, modality, *rates) for seed in seeds]


class DualEncoder(tf.Module):
    """Ensemble of pairs of an image head and a text head that are trained together.

    The members share only the temperature; each has its own initial weights, dropout and batches.
    `trainer.model.ensemble` combines them into one encoder.

    Attributes:
      image_heads, text_heads: `config.ensemble_size` heads each; see trainer.model.projection_heads.
      log_temperature: float32 scalar, trainable if `config.learn_temperature`.
    """

    def __init__(self, config: TrainConfig, image_width: int, text_width: int) -> None:
        super().__init__(name="dual_encoder")
        self.image_heads = new_heads(config, "image", image_width)
        self.text_heads = new_heads(config, "text", text_width)
        self._loss = soft_target_loss if config.preset == "recipe2022" else info_nce
        initial = np.float32(np.log(config.temperature))
        self.log_temperature = tf.Variable(initial, trainable=config.learn_temperature, name="log_temperature")

    def standardize(self, image_features: Array, text_features: Array) -> None:
        """Sets the feature statistics of heads that standardize their input.

        Args:
          image_features, text_features: Features of the training set, float32 [n, d].
        """
        for heads, features in ((self.image_heads, image_features), (self.text_heads, text_features)):
            mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
            for head in heads:
                if isinstance(head, WideHead):
                    head.standardize(mean, std)

    @property
    def temperature(self) -> tf.Tensor:
        """Temperature, a float32 scalar."""
        return tf.maximum(tf.exp(self.log_temperature), MIN_TEMPERATURE)

    def loss(
        self, images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, dropout_seed: tf.Tensor | None
    ) -> tf.Tensor:
        """Returns this worker's share of the global batch's loss; call it inside `strategy.run`.

        The size of axis m is the number of members, or 1 if all members share the batch.

        Args:
          images: float32 [n, m, image width], features of this worker's part of the batch.
          texts: float32 [n, m, k, text width], features of k captions per image.
          text_ids: int32 [n, m, k], equal for identical captions.
          dropout_seed: int32 [2], or None for no dropout.

        Returns:
          float32 scalar, the mean over the members.
        """
        embedded = self.embed(images, texts, dropout_seed)
        return over_global_batch(self.mean_loss, *embedded, self._per_member(text_ids), self.temperature)

    def embed(self, images: tf.Tensor, texts: tf.Tensor, dropout_seed: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Embeds features; see `loss` for the arguments.

        Returns:
          Image embeddings float32 [n, members, dim] and text embeddings float32 [n, members, k, dim].
        """
        seeds = split_seed(dropout_seed, 2 * len(self.image_heads))
        images, texts = self._per_member(images), self._per_member(texts)
        shape = tf.shape(texts)
        embedded_images, embedded_texts = [], []
        for member, (image_head, text_head) in enumerate(zip(self.image_heads, self.text_heads, strict=True)):
            embedded_images.append(image_head(images[:, member], seeds[2 * member]))
            flat = text_head(tf.reshape(texts[:, member], [-1, texts.shape[-1]]), seeds[2 * member + 1])
            embedded_texts.append(tf.reshape(flat, [shape[0], shape[2], flat.shape[-1]]))
        return tf.stack(embedded_images, 1), tf.stack(embedded_texts, 1)

    def mean_loss(self, images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        """Returns the members' mean loss over a whole batch of embeddings, as returned by `embed`."""
        losses = [
            self._loss(images[:, member], texts[:, member], text_ids[:, member], temperature)
            for member in range(len(self.image_heads))
        ]
        return tf.add_n(losses) / len(losses)

    def state(self) -> dict[str, Array]:
        """Returns all weights by name, including those that are not trained."""
        return {name: variable.numpy() for name, variable in self._named().items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Restores the result of `state()`."""
        for name, variable in self._named().items():
            variable.assign(state[name])

    def _per_member(self, batch: tf.Tensor) -> tf.Tensor:
        return batch if batch.shape[1] == len(self.image_heads) else tf.repeat(batch, len(self.image_heads), 1)

    def _named(self) -> dict[str, tf.Variable]:
        modalities = {"image": self.image_heads, "text": self.text_heads}
        named = {
            f"{modality}{i}/{variable.name}": variable
            for modality, heads in modalities.items()
            for i, head in enumerate(heads)
            for variable in head.variables
        }
        return {**named, "log_temperature": self.log_temperature}


def gradient_step(
    strategy: tf.distribute.Strategy, model: DualEncoder
) -> Callable[..., tuple[tf.Tensor, list[tf.Tensor]]]:
    """Returns a function that computes the global batch's loss and gradients from the arguments of `DualEncoder.loss`.

    Loss and gradients are summed over the workers, so all workers get the same results. The gradients are in the order
    of `model.trainable_variables`. The strategy must have one replica per worker.
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
