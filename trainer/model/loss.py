"""Contrastive losses over the global batch: embeddings are gathered from all workers before they are compared."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_EXCLUDED = -1e9  # a logit that no softmax notices


def info_nce(images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021, CLIP) with k captions an image.

    A text is not compared as a negative with its own image's other captions, nor with an image one of whose
    captions reads the same.

    Args:
      images: float32 [n, d], L2-normalised.
      texts: float32 [n, k, d], L2-normalised; texts[i] belong to images[i].
      text_ids: int32 [n, k], equal where texts read the same.
      temperature: scalar.

    Returns:
      Scalar: the mean of both directions.
    """
    n, k = tf.shape(texts)[0], tf.shape(texts)[1]
    logits = tf.einsum("ikd,jd->ikj", texts, images) / temperature
    own = tf.eye(n, dtype=tf.bool)[:, tf.newaxis, :]
    same = tf.reduce_any(text_ids[:, :, tf.newaxis, tf.newaxis] == text_ids, -1)
    positives = tf.einsum("iki->ik", logits)

    to_images = tf.where(same & ~own, _EXCLUDED, logits)
    text_loss = tf.reduce_logsumexp(to_images, 2) - positives

    negatives = tf.reshape(tf.where(same | own, _EXCLUDED, logits), [n * k, n])
    against = tf.reduce_logsumexp(negatives, 0)[:, tf.newaxis]
    image_loss = tf.math.softplus(against - positives)
    return (tf.reduce_mean(text_loss) + tf.reduce_mean(image_loss)) / 2.0


def soft_target_loss(images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """The loss of the 2022 recipe: targets are softened by how alike the images and the captions of a batch are.

    Args and returns as of `info_nce`; k must be 1, and text_ids are not used.
    """
    texts = texts[:, 0]
    logits = tf.matmul(texts, images, transpose_b=True) / temperature
    alike = tf.matmul(images, images, transpose_b=True) + tf.matmul(texts, texts, transpose_b=True)
    targets = tf.nn.softmax(alike / (2.0 * temperature))
    text_loss = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    image_loss = tf.nn.softmax_cross_entropy_with_logits(tf.transpose(targets), tf.transpose(logits))
    return (tf.reduce_mean(text_loss) + tf.reduce_mean(image_loss)) / 2.0


Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def over_global_batch(
    loss: Loss, images: tf.Tensor, texts: tf.Tensor, text_ids: tf.Tensor, temperature: tf.Tensor
) -> tf.Tensor:
    """A worker's share of the loss over all workers' examples; call it inside `strategy.run`.

    Every worker computes the whole loss and takes an equal share of it, so the sum over workers is the loss, and
    the sum of their gradients its gradient (the gradient of all_gather sums over workers, too).
    """
    context = tf.distribute.get_replica_context()
    # An argument of a function has no device yet, and the gathering asks for one.
    images, texts, text_ids = (context.all_gather(tf.identity(x), axis=0) for x in (images, texts, text_ids))
    return loss(images, texts, text_ids, temperature) / context.num_replicas_in_sync
