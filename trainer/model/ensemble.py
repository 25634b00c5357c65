"""Trained pairs of heads become one pair of encoders: reduced to one space, and corrected for hubs.

Fusing: the pairs' embeddings are concatenated, so that scores are averaged, and turned to their principal axes, of
which the first ones are kept. That gives the quality of an ensemble at the width of one embedding.

Hubs: some images are near to every query, and hide others (Radovanović et al. 2010, JMLR 11:2487-2531). Querybank
normalisation (Bogolin et al. 2022, arXiv:2112.12777) finds them by their nearness to a bank of training captions.
Here, an image's nearness to the bank becomes one dimension of its embedding, in which every text has the same value:
a dot product of two unit vectors then takes it off the score, with no work for the index or the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.model.dual_encoder import DualEncoder
from trainer.model.projection_heads import Head
from trainer.towers.layers import dense

BANK = 8192
"""Most captions of the bank."""

SAMPLE = 50_000
"""Most images and captions that the principal axes are found with."""

MIN_TEMPERATURE = 0.03
"""Of the nearness to the bank: with a lower one, an image that is far from all captions would underflow."""

TEXT_HUBNESS = 0.5
"""What every text has in the dimension of hubs."""

_ROWS = 4096  # inputs of a head at once

Array = npt.NDArray[Any]


class EnsembleHead(tf.Module):
    """Heads, one space for all of them, and the correction of hubs.

    Args:
      heads: trained ones of one modality.
      axes: float32 [heads x their dim, dim]; None keeps a single head's space.
    """

    def __init__(self, heads: Sequence[Head], axes: Array | None, name: str) -> None:
        super().__init__(name=name)
        self._heads = list(heads)
        self._axes = None if axes is None else tf.Variable(axes, trainable=False, name="axes")

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """Returns float32 [n, dim], L2-normalised, for features, float32 [n, d]."""
        return self._correct(self.project(features))

    def project(self, features: tf.Tensor) -> tf.Tensor:
        """As a call, but without the dimension of hubs."""
        embedded = tf.concat([head(features) for head in self._heads], -1)
        if self._axes is None:
            return embedded
        return tf.math.l2_normalize(_product(embedded, self._axes), -1)

    def _correct(self, embedded: tf.Tensor) -> tf.Tensor:
        return embedded


class _TextHead(EnsembleHead):
    """Adds the constant that an image's nearness to the bank is multiplied with."""

    def _correct(self, embedded: tf.Tensor) -> tf.Tensor:
        hub = tf.fill([tf.shape(embedded)[0], 1], TEXT_HUBNESS)
        return tf.concat([embedded * (1.0 - TEXT_HUBNESS**2) ** 0.5, hub], -1)


class _ImageHead(EnsembleHead):
    """Adds the nearness to the bank.

    Args:
      strength: how much of the nearness is taken off a score.
      bank: float32 [captions, dim]: embeddings of captions without the dimension of hubs.
      images: float32 [n, dim]: embeddings of images, whose mean nearness becomes 0.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        axes: Array,
        name: str,
        strength: float,
        temperature: float,
        bank: Array,
        images: Array,
    ) -> None:
        super().__init__(heads, axes, name)
        self._temperature = max(temperature, MIN_TEMPERATURE)
        # The rest of a text's embedding is shorter by the constant.
        self._factor = strength * (1.0 - TEXT_HUBNESS**2) ** 0.5 / TEXT_HUBNESS
        self._bank = tf.Variable(np.ascontiguousarray(bank.T), trainable=False, name="bank")
        self._mean = tf.Variable(0.0, trainable=False, name="mean_nearness")
        nearness = [self._nearness(tf.constant(part)).numpy() for part in _parts(images)]
        self._mean.assign(np.concatenate(nearness).mean())

    def _correct(self, embedded: tf.Tensor) -> tf.Tensor:
        hub = self._factor * (self._mean - self._nearness(embedded))
        # The hub's dimension is small: making the length 1 again changes scores far less than it does.
        return tf.math.l2_normalize(tf.concat([embedded, hub], -1), -1)

    def _nearness(self, embedded: tf.Tensor) -> tf.Tensor:
        """Float32 [n, 1]: soft maximum of the similarities to the bank."""
        similarity = _product(embedded, self._bank)
        return self._temperature * tf.math.log(
            tf.reduce_mean(tf.exp((similarity - 1.0) / self._temperature), -1, keepdims=True)
        )


def combine_heads(
    model: DualEncoder, images: Array, texts: Array, dim: int, hubness_correction: float, seed: int
) -> tuple[EnsembleHead, EnsembleHead]:
    """Makes one image head and one text head of a trained model.

    Args:
      images, texts: float32 [n, d] and [m, d], features of the training set; the plain view of images.
      dim: of the embeddings.
      hubness_correction: strength of the correction; 0 leaves it out, and then a single pair of heads stays as it is.
      seed: of the samples that the axes and the bank are made of.
    """
    if _stays_single(model.image_heads, hubness_correction):
        return EnsembleHead(model.image_heads, None, "image"), EnsembleHead(model.text_heads, None, "text")
    random = np.random.default_rng(seed)
    images, texts = (part[_sample(random, len(part), SAMPLE)] for part in (images, texts))
    embedded = [
        _embed(lambda x, heads=heads: tf.concat([head(x) for head in heads], -1), features)
        for heads, features in ((model.image_heads, images), (model.text_heads, texts))
    ]
    axes = _principal_axes(embedded, _fused_dim(dim, hubness_correction))
    text_head = _text_kind(hubness_correction)(model.text_heads, axes, "text")
    if not hubness_correction:
        return EnsembleHead(model.image_heads, axes, "image"), text_head
    plain = EnsembleHead(model.image_heads, axes, "image")
    bank = _embed(text_head.project, texts[_sample(random, len(texts), BANK)])
    temperature = float(model.temperature)
    image_head = _ImageHead(
        model.image_heads, axes, "image", hubness_correction, temperature, bank, _embed(plain.project, images)
    )
    return image_head, text_head


def uninitialized_text_head(heads: Sequence[Head], dim: int, hubness_correction: float) -> EnsembleHead:
    """Returns a text head of the structure that `combine_heads` gives, whose weights are still to be loaded."""
    if _stays_single(heads, hubness_correction):
        return EnsembleHead(heads, None, "text")
    axes = np.zeros((len(heads) * heads[0].dim, _fused_dim(dim, hubness_correction)), np.float32)
    return _text_kind(hubness_correction)(heads, axes, "text")


def _stays_single(heads: Sequence[Head], hubness_correction: float) -> bool:
    return len(heads) == 1 and not hubness_correction


def _fused_dim(dim: int, hubness_correction: float) -> int:
    """Dimensions that are left for the principal axes."""
    return dim - 1 if hubness_correction else dim


def _text_kind(hubness_correction: float) -> type[EnsembleHead]:
    return _TextHead if hubness_correction else EnsembleHead


def _principal_axes(parts: Sequence[Array], count: int) -> Array:
    """The first eigenvectors of the parts' mean second moments, float32 [d, count]; axes beyond d are 0."""
    moments = sum(part.astype(np.float64).T @ part / len(part) for part in parts)
    values, vectors = np.linalg.eigh(moments)
    found = vectors[:, np.argsort(-values, kind="stable")[:count]]
    # An eigenvector's sign is arbitrary: fixing it gives the same encoder on every machine.
    found = found * np.where(found[np.abs(found).argmax(0), np.arange(found.shape[1])] < 0, -1.0, 1.0)
    return np.pad(found, ((0, 0), (0, count - found.shape[1]))).astype(np.float32)


def _sample(random: np.random.Generator, count: int, most: int) -> Array:
    return np.arange(count) if count <= most else np.sort(random.permutation(count)[:most])


def _embed(function: Any, features: Array) -> Array:
    return np.concatenate([function(tf.constant(part)).numpy() for part in _parts(features)])


def _parts(rows: Array) -> list[Array]:
    return [rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS)]


def _product(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return dense(x, kernel, tf.zeros(kernel.shape[1]))
