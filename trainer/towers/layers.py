"""Layers in two variants: float operations for training and batch embedding, and TFLite-friendly ones for export.

The Task Library's runtimes quantize convolutions correctly, with one scale per output channel. A quantized
fully-connected layer, however, is either of a version that they do not support, or has a single scale for its whole
matrix, which costs accuracy. For export, a dense layer is therefore a 1x1 convolution, in one of two ways:

- With activation ranges (`trace_for_device(ranges)`): static 8-bit quantization with ranges that were observed
  beforehand. XNNPACK then packs the weights once, when the model is opened. Each input and output channel is scaled to
  -1..1 by factors that are folded into the kernel, so that an outlier channel, as transformers have them, does not cost
  the other channels their resolution; this is the idea of SmoothQuant (Xiao et al. 2022, arXiv:2211.10438).
- Without ranges: float, or the converter's dynamic-range quantization, which packs the weights anew for every query.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Array = npt.NDArray[np.float32]

_HEADROOM = 1.1
"""Factor by which ranges are widened beyond the observed values."""

_LEAST = 1e-3
"""Minimum range of a channel, relative to the widest channel of its layer; avoids empty ranges."""


@dataclass
class ActivationRanges:
    """Maximum absolute values of the inputs and outputs of dense layers.

    Attributes:
      layers: Pairs (float32 [inputs], float32 [outputs]), one per layer in the order of calls.
    """

    layers: list[tuple[Array, Array]] = field(default_factory=list)


@dataclass
class _Pass:
    """State of one pass through a network.

    Attributes:
      ranges: Activation ranges to observe, or to quantize with; None for layers without static quantization.
      observing: Whether the pass observes ranges, instead of tracing for export.
      called: Number of dense layers called so far.
    """

    ranges: ActivationRanges | None
    observing: bool
    called: int = 0


_half = contextvars.ContextVar("half", default=False)
_current: contextvars.ContextVar[_Pass | None] = contextvars.ContextVar("layers_pass", default=None)


@contextlib.contextmanager
def observe_ranges(ranges: ActivationRanges) -> Iterator[None]:
    """Context in which one eager pass widens the ranges to the activations it computes."""
    with _passing(_Pass(ranges, observing=True)):
        yield


@contextlib.contextmanager
def trace_for_device(ranges: ActivationRanges | None = None) -> Iterator[None]:
    """Context in which one function is traced for export to TFLite, with 8-bit dense layers if ranges are given."""
    with _passing(_Pass(ranges, observing=False)):
        yield


@contextlib.contextmanager
def mixed_precision() -> Iterator[None]:
    """Context in which traced functions multiply and convolve in bfloat16; everything else stays float32."""
    token = _half.set(True)
    try:
        yield
    finally:
        _half.reset(token)


def cast_for_product(*tensors: tf.Tensor) -> list[tf.Tensor]:
    """Returns the factors of a product, cast to bfloat16 inside `mixed_precision`."""
    return [tf.cast(tensor, tf.bfloat16) for tensor in tensors] if _half.get() else list(tensors)


def dense(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Multiplies the last axis of float32 [..., inputs] by a kernel [inputs, outputs] and adds the bias."""
    shape = tf.shape(x)
    rows = tf.reshape(x, [-1, kernel.shape[0]])
    current = _current.get()
    if current is None:
        rows = tf.nn.bias_add(tf.cast(tf.matmul(*cast_for_product(rows, kernel)), tf.float32), bias)
    elif current.observing:
        rows = _observed(rows, kernel, bias, current)
    elif current.ranges is not None:
        rows = _static_int8(rows, kernel, bias, *current.ranges.layers[current.called])
    else:
        # Rows become the batch axis, so that each row is quantized with its own scale.
        rows = tf.nn.conv2d(rows[:, tf.newaxis, tf.newaxis], kernel[tf.newaxis, tf.newaxis], 1, "VALID")
        rows = tf.nn.bias_add(rows, bias)
    if current is not None:
        current.called += 1
    return tf.reshape(rows, tf.concat([shape[:-1], [kernel.shape[1]]], 0))


def embedding(table: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Returns rows of a table [n, d], float32 [..., d]; with ranges, the table has 8 bits and one scale per row."""
    if not _is_static():
        return tf.gather(table, ids)
    values = _constant(table)
    scales = np.maximum(np.abs(values).max(1), np.finfo(np.float32).tiny) / 127
    rows = tf.gather(tf.constant(np.round(values / scales[:, np.newaxis]).astype(np.int8)), ids)
    return tf.cast(rows, tf.float32) * tf.gather(tf.constant(scales), ids)[..., tf.newaxis]


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Computes GELU; on the device by its tanh approximation (within 5e-4), in operations that XNNPACK supports."""
    if not _is_static():
        return tf.nn.gelu(x)
    return x * tf.sigmoid(x * (1.5957691 + 0.0713548 * x * x))  # 2 sqrt(2 / pi) (x + 0.044715 x^3)


def layer_norm(x: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Applies layer normalisation to the last axis."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
    return centred * tf.math.rsqrt(variance + epsilon) * gain + bias


@contextlib.contextmanager
def _passing(new: _Pass) -> Iterator[None]:
    token = _current.set(new)
    try:
        yield
    finally:
        _current.reset(token)


def _is_static() -> bool:
    current = _current.get()
    return current is not None and current.ranges is not None and not current.observing


def _observed(rows: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, current: _Pass) -> tf.Tensor:
    assert current.ranges is not None
    outputs = tf.nn.bias_add(tf.matmul(rows, kernel), bias)
    maxima = (np.abs(rows.numpy()).max(0), np.abs(outputs.numpy()).max(0))
    layers = current.ranges.layers
    if current.called == len(layers):
        layers.append(maxima)
    else:
        previous = layers[current.called]
        layers[current.called] = (np.maximum(previous[0], maxima[0]), np.maximum(previous[1], maxima[1]))
    return outputs


def _static_int8(rows: tf.Tensor, kernel: Any, bias: Any, inputs: Array, outputs: Array) -> tf.Tensor:
    """Computes a dense layer between `fake_quant` operations, which the converter turns into an 8-bit operation."""
    inputs, outputs = _widened(inputs), _widened(outputs)
    folded = _constant(kernel) * inputs[:, np.newaxis] / outputs
    limits = np.maximum(np.abs(folded).max(0), np.finfo(np.float32).tiny)
    pixels = tf.quantization.fake_quant_with_min_max_args((rows * (1 / inputs))[tf.newaxis, tf.newaxis], -1.0, 1.0)
    weights = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        folded[np.newaxis, np.newaxis], -limits, limits, narrow_range=True
    )
    pixels = tf.nn.bias_add(tf.nn.conv2d(pixels, weights, 1, "VALID"), bias / outputs)
    pixels = tf.quantization.fake_quant_with_min_max_args(pixels, -1.0, 1.0)
    # The reshape keeps the converter from folding the factors back into the kernel.
    return tf.reshape(pixels, [-1, len(outputs)]) * outputs


def _widened(limits: Array) -> Array:
    widest = max(float(limits.max()), float(np.finfo(np.float32).tiny))
    return np.maximum(limits * _HEADROOM, widest * _LEAST).astype(np.float32)


def _constant(value: Any) -> Array:
    with tf.init_scope():  # leaves the function that is being traced
        constant: Array = tf.convert_to_tensor(value).numpy()
    return constant
