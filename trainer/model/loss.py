"""Implements contrastive losses over the global batch: embeddings are gathered from all workers."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_EXCLUDED = -1e9  # a logit with no weight in a softmax


def info_nce(images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """Computes symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021, CLIP) with k captions per image.

    A text and an image are not treated as a negative pair if the text is one of the image's captions, or is identical
    to one of them.

    Args:
      images: float32 [n, d], L2-normalised.
      texts: float32 [n, k, d], L2-normalised; texts[i] belong to images[i].
      text_ids: int32 [n, k], equal for identical texts.
      temperature: Scalar.

    Returns:
      Scalar, the mean of both directions.
    """
    n, k = tf.shape(texts)[0], tf.shape(texts)[1]
    logits = tf.einsum("ikd,jd->ikj", texts, images) / temperature
    own = tf.eye(n, dtype=tf.bool)[:, tf.newaxis, :]
    same = tf.reduce_any(text_ids[:, :, tf.newaxis, tf.newaxis] == text_ids, -1)
    positives = tf.einsum("iki->ik", logits)

    to_images = tf.where(same & ~own, _EXCLUDED, logits)
    text_loss = tf.reduce_logsumexp(to_images, 2) - positives

    negatives = tf.reshape(tf.where(same | own, _EXCLUDED, logits), [n * k, n])
    negative = tf.reduce_logsumexp(negatives, 0)[:, tf.newaxis]
    image_loss = tf.math.softplus(negative - positives)
    return (tf.reduce_mean(text_loss) + tf.reduce_mean(image_loss)) / 2.0


def soft_target_loss(images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """Computes the 2022 recipe's loss, with soft targets from the similarities within a batch's images and captions.

    Arguments and result are those of `info_nce`, but k must be 1, and text_ids are unused.
    """
    texts = texts[:, 0]
    logits = tf.matmul(texts, images, transpose_b=True) / temperature
    similarity = tf.matmul(images, images, transpose_b=True) + tf.matmul(texts, texts, transpose_b=True)
    targets = tf.nn.softmax(similarity / (2.0 * temperature))
    text_loss = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    image_loss = tf.nn.softmax_cross_entropy_with_logits(tf.transpose(targets), tf.transpose(logits))
    return (tf.reduce_mean(text_loss) + tf.reduce_mean(image_loss)) / 2.0


Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def over_global_batch(
    loss: Loss, images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, temperature: tf.Tensor
) -> tf.Tensor:
    """Returns a worker's share of the loss over all workers' examples; call it inside `strategy.run`.

    Each worker computes the whole loss and returns an equal share of it. The shares sum to the loss, and their
    gradients to its gradient, because the gradient of all_gather also sums over workers.
    """
    context = tf.distribute.get_replica_context()
    # all_gather needs tensors with a device, which the arguments of a function do not have.
    images, texts, text_ids = (context.all_gather(tf.identity(x), axis=0) for x in (images, texts, text_ids))
    return loss(images, texts, text_ids, temperature) / context.num_replicas_in_sync
