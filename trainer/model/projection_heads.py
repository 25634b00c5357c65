"""Defines the projection heads, which map a tower's features to L2-normalised embeddings in the shared space."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.towers.layers import dense, layer_norm

HIDDEN = 1024
"""Width of the hidden layer of WideHead."""

LAYER_NORM_EPSILON = 1e-3

Array = npt.NDArray[Any]
Seed = int | tuple[int, ...]


class Head(tf.Module):
    """Base class of projection heads.

    NumPy generates the initial weights from `seed`, so that all workers start with the same ones.

    Args:
      dim: Dimension of the shared space.
      seed: Seed of the initial weights.
      name: `image` or `text`; part of the weights' names.
    """

    def __init__(self, dim: int, seed: Seed, name: str) -> None:
        super().__init__(name=name)
        self.dim = dim
        self._random = np.random.default_rng(seed)

    def __call__(self, features: tf.Tensor, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        """Projects features.

        Args:
          features: float32 [n, d].
          dropout_seed: int32 [2], different in every step; None disables dropout.

        Returns:
          float32 [n, dim], L2-normalised.
        """
        return tf.math.l2_normalize(self._project(features, dropout_seed), -1)

    def _project(self, features: tf.Tensor, dropout_seed: tf.Tensor | None) -> tf.Tensor:
        raise NotImplementedError

    def _dense(self, inputs: int, outputs: int, name: str) -> tuple[tf.Variable, tf.Variable]:
        """Returns a Glorot-uniform kernel and a zero bias, the defaults of Keras."""
        limit = np.sqrt(6.0 / (inputs + outputs))
        kernel = self._random.uniform(-limit, limit, (inputs, outputs)).astype(np.float32)
        bias = np.zeros(outputs, np.float32)
        return tf.Variable(kernel, name=f"{name}.kernel"), tf.Variable(bias, name=f"{name}.bias")


class ResidualHead(Head):
    """Head of the 2022 recipe: a dense layer and one residual block with layer normalisation."""

    def __init__(self, inputs: int, dim: int, seed: Seed, name: str, dropout: float = 0.1) -> None:
        super().__init__(dim, seed, name)
        self._dropout = dropout
        self._first = self._dense(inputs, dim, "first")
        self._second = self._dense(dim, dim, "second")
        self._gain = tf.Variable(tf.ones(dim), name="layer_norm.gain")
        self._bias = tf.Variable(tf.zeros(dim), name="layer_norm.bias")

    def _project(self, features: tf.Tensor, dropout_seed: tf.Tensor | None) -> tf.Tensor:
        projected = dense(features, *self._first)
        residual = _drop(dense(tf.nn.relu(projected), *self._second), self._dropout, dropout_seed)
        return layer_norm(projected + residual, self._gain, self._bias, LAYER_NORM_EPSILON)


class WideHead(Head):
    """Head of the `best` preset: the sum of a linear map and a wide hidden layer, applied to standardized features.

    Args:
      inputs: Width of the features.
      input_dropout, hidden_dropout: Dropout rates.
    """

    def __init__(
        self, inputs: int, dim: int, seed: Seed, name: str, input_dropout: float, hidden_dropout: float
    ) -> None:
        super().__init__(dim, seed, name)
        self._input_dropout, self._hidden_dropout = input_dropout, hidden_dropout
        self._mean = tf.Variable(tf.zeros(inputs), trainable=False, name="features.mean")
        self._scale = tf.Variable(tf.ones(inputs), trainable=False, name="features.scale")
        self._linear = self._dense(inputs, dim, "linear")
        self._hidden = self._dense(inputs, HIDDEN, "hidden")
        self._output = self._dense(HIDDEN, dim, "output")

    def standardize(self, mean: Array, std: Array) -> None:
        """Sets the mean and the standard deviation of the training features, [inputs] each."""
        self._mean.assign(mean.astype(np.float32))
        # Do not scale up constant features, which carry no information.
        self._scale.assign(np.where(std > 1e-6, 1.0 / np.maximum(std, 1e-6), 1.0).astype(np.float32))

    def _project(self, features: tf.Tensor, dropout_seed: tf.Tensor | None) -> tf.Tensor:
        input_seed, hidden_seed = split_seed(dropout_seed, 2)
        x = _drop((features - self._mean) * self._scale, self._input_dropout, input_seed)
        hidden = _drop(tf.nn.gelu(dense(x, *self._hidden)), self._hidden_dropout, hidden_seed)
        return dense(x, *self._linear) + dense(hidden, *self._output)


def split_seed(seed: tf.Tensor | None, count: int) -> list[tf.Tensor | None]:
    """Returns `count` independent seeds, int32 [2] each, or as many None if `seed` is None.

    Two dropout layers must not share a seed: if an image and its caption had the same mask, training would learn to
    match the masks.
    """
    if seed is None:
        return [None] * count
    return list(tf.unstack(tf.random.experimental.stateless_split(seed, count)))


def _drop(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    if seed is None or rate == 0.0:
        return x
    keep = tf.random.stateless_uniform(tf.shape(x), seed) >= rate
    return tf.where(keep, x / (1.0 - rate), 0.0)
