"""Combines an ensemble of head pairs into one image head and one text head, with hubness correction.

Ensembling: concatenating the members' embeddings averages their scores. A projection onto the leading principal axes
then reduces the embeddings to the configured dimension, and keeps most of the ensemble's quality.

Hubness: some images, called hubs, are close to nearly every query and displace better matches (Radovanović et al. 2010,
JMLR 11:2487-2531). Querybank normalisation (Bogolin et al. 2022, arXiv:2112.12777) detects them by their similarity to
a bank of training captions. Here, that similarity is stored in an additional dimension of the image embedding. Text
embeddings have a constant there, so the dot product subtracts the correction at no cost to the index or the query.
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
"""Maximum number of captions in the bank."""

SAMPLE = 50_000
"""Maximum number of images, and of captions, for computing the principal axes."""

MIN_TEMPERATURE = 0.03
"""Lower bound of the temperature of bank similarities; below it, images far from all captions could underflow."""

TEXT_HUBNESS = 0.5
"""Value of every text embedding in the hubness dimension."""

_ROWS = 4096  # inputs per call of a head

Array = npt.NDArray[Any]


class EnsembleHead(tf.Module):
    """The heads of one modality, combined by concatenation and projection; subclasses add the hubness dimension.

    Args:
      heads: Trained heads of one modality.
      axes: float32 [heads * dim of a head, dim]; None for a single head without projection.
    """

    def __init__(self, heads: Sequence[Head], axes: Array | None, name: str) -> None:
        super().__init__(name=name)
        self._heads = list(heads)
        self._axes = None if axes is None else tf.Variable(axes, trainable=False, name="axes")

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """Embeds features, float32 [n, d], as float32 [n, dim], L2-normalised."""
        return self._correct(self.project(features))

    def project(self, features: tf.Tensor) -> tf.Tensor:
        """Embeds features without the hubness dimension."""
        embedded = tf.concat([head(features) for head in self._heads], -1)
        if self._axes is None:
            return embedded
        return tf.math.l2_normalize(_product(embedded, self._axes), -1)

    def _correct(self, embedded: tf.Tensor) -> tf.Tensor:
        return embedded


class _TextHead(EnsembleHead):
    """Text head whose hubness dimension is a constant."""

    def _correct(self, embedded: tf.Tensor) -> tf.Tensor:
        hubness = tf.fill([tf.shape(embedded)[0], 1], TEXT_HUBNESS)
        return tf.concat([embedded * (1.0 - TEXT_HUBNESS**2) ** 0.5, hubness], -1)


class _ImageHead(EnsembleHead):
    """Image head whose hubness dimension is the negative similarity to the bank, relative to the mean.

    Args:
      strength: Fraction of the similarity that is subtracted from a score.
      temperature: Temperature of the soft maximum over the bank; at least MIN_TEMPERATURE is used.
      bank: float32 [captions, dim - 1], caption embeddings without the hubness dimension.
      images: float32 [n, dim - 1], image embeddings that determine the mean similarity.
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
        # Compensates for the scaling of text embeddings by sqrt(1 - TEXT_HUBNESS^2) and for their constant.
        self._factor = strength * (1.0 - TEXT_HUBNESS**2) ** 0.5 / TEXT_HUBNESS
        self._bank = tf.Variable(np.ascontiguousarray(bank.T), trainable=False, name="bank")
        self._mean = tf.Variable(0.0, trainable=False, name="mean_nearness")
        similarities = [self._bank_similarity(tf.constant(batch)).numpy() for batch in _batches(images)]
        self._mean.assign(np.concatenate(similarities).mean())

    def _correct(self, embedded: tf.Tensor) -> tf.Tensor:
        hubness = self._factor * (self._mean - self._bank_similarity(embedded))
        # The hubness dimension is small, so normalising again changes scores far less than the correction itself.
        return tf.math.l2_normalize(tf.concat([embedded, hubness], -1), -1)

    def _bank_similarity(self, embedded: tf.Tensor) -> tf.Tensor:
        """Returns the soft maximum of the similarities to the bank, float32 [n, 1]."""
        similarity = _product(embedded, self._bank)
        return self._temperature * tf.math.log(
            tf.reduce_mean(tf.exp((similarity - 1.0) / self._temperature), -1, keepdims=True)
        )


def combine_heads(
    model: DualEncoder, images: Array, texts: Array, dim: int, hubness_correction: float, seed: int
) -> tuple[EnsembleHead, EnsembleHead]:
    """Combines the head pairs of a trained model into one image head and one text head.

    Args:
      images, texts: Features of the training set, float32 [n, d] and [m, d]; images are unaugmented.
      dim: Dimension of the combined embeddings.
      hubness_correction: Strength of the correction; with 0, a single pair of heads is returned unchanged.
      seed: Seed for sampling images and captions.
    """
    if _stays_single(model.image_heads, hubness_correction):
        return EnsembleHead(model.image_heads, None, "image"), EnsembleHead(model.text_heads, None, "text")
    random = np.random.default_rng(seed)
    images, texts = (rows[_sample(random, len(rows), SAMPLE)] for rows in (images, texts))
    embedded = [
        _embed(lambda x, heads=heads: tf.concat([head(x) for head in heads], -1), features)
        for heads, features in ((model.image_heads, images), (model.text_heads, texts))
    ]
    axes = _principal_axes(embedded, _fused_dim(dim, hubness_correction))
    text_head = _text_head_class(hubness_correction)(model.text_heads, axes, "text")
    if not hubness_correction:
        return EnsembleHead(model.image_heads, axes, "image"), text_head
    uncorrected = EnsembleHead(model.image_heads, axes, "image")
    bank = _embed(text_head.project, texts[_sample(random, len(texts), BANK)])
    temperature = float(model.temperature)
    image_head = _ImageHead(
        model.image_heads, axes, "image", hubness_correction, temperature, bank, _embed(uncorrected.project, images)
    )
    return image_head, text_head


def uninitialized_text_head(heads: Sequence[Head], dim: int, hubness_correction: float) -> EnsembleHead:
    """Returns a text head with the structure that `combine_heads` creates, for loading weights into it."""
    if _stays_single(heads, hubness_correction):
        return EnsembleHead(heads, None, "text")
    axes = np.zeros((len(heads) * heads[0].dim, _fused_dim(dim, hubness_correction)), np.float32)
    return _text_head_class(hubness_correction)(heads, axes, "text")


def _stays_single(heads: Sequence[Head], hubness_correction: float) -> bool:
    return len(heads) == 1 and not hubness_correction


def _fused_dim(dim: int, hubness_correction: float) -> int:
    """Returns the number of principal axes to keep."""
    return dim - 1 if hubness_correction else dim


def _text_head_class(hubness_correction: float) -> type[EnsembleHead]:
    return _TextHead if hubness_correction else EnsembleHead


def _principal_axes(embeddings: Sequence[Array], count: int) -> Array:
    """Returns the leading eigenvectors of the mean second moments, float32 [d, count]; axes beyond d are 0.

    Args:
      embeddings: float32 [n, d] of each modality; modalities have equal weight.
    """
    moments = sum(rows.astype(np.float64).T @ rows / len(rows) for rows in embeddings)
    values, vectors = np.linalg.eigh(moments)
    axes = vectors[:, np.argsort(-values, kind="stable")[:count]]
    # Fix the arbitrary signs of eigenvectors, so that the encoder is the same on every machine.
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    return np.pad(axes, ((0, 0), (0, count - axes.shape[1]))).astype(np.float32)


def _sample(random: np.random.Generator, count: int, limit: int) -> Array:
    return np.arange(count) if count <= limit else np.sort(random.permutation(count)[:limit])


def _embed(function: Any, features: Array) -> Array:
    return np.concatenate([function(tf.constant(batch)).numpy() for batch in _batches(features)])


def _batches(rows: Array) -> list[Array]:
    return [rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS)]


def _product(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return dense(x, kernel, tf.zeros(kernel.shape[1]))
