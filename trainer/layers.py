"""Dense layers in two forms: a product of matrices for training and batch embedding, a 1x1 convolution for phones.

The TFLite converter quantizes a convolution with one scale for each output channel and for each row of its input,
and every runtime of the Task Library computes that correctly. A quantized fully-connected layer is either a
version that those runtimes do not know, or has one scale for its whole matrix, which costs accuracy.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

_on_device = contextvars.ContextVar("on_device", default=False)


@contextlib.contextmanager
def for_device() -> Iterator[None]:
    """Inside, functions are traced in the form that is exported to TFLite."""
    token = _on_device.set(True)
    try:
        yield
    finally:
        _on_device.reset(token)


def dense(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Multiplies the last axis of float32 [..., inputs] with a kernel [inputs, outputs] and adds the bias."""
    shape = tf.shape(x)
    rows = tf.reshape(x, [-1, kernel.shape[0]])
    if _on_device.get():
        # Rows are the batch, so that each one is quantized with a scale of its own.
        rows = tf.nn.conv2d(rows[:, tf.newaxis, tf.newaxis], kernel[tf.newaxis, tf.newaxis], 1, "VALID")
        rows = tf.nn.bias_add(rows, bias)
    else:
        rows = tf.nn.bias_add(tf.matmul(rows, kernel), bias)
    return tf.reshape(rows, tf.concat([shape[:-1], [kernel.shape[1]]], 0))
