"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; the Lite variant: ReLU6, no squeeze-and-excite).

The image tower of the default encoders: a network made for TensorFlow Lite, built from plain TensorFlow
operations. Its batch normalisations are folded into the convolutions when the weights are read, which changes
nothing but rounding, and makes it faster and easier to quantize.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

_STAGES = (  # repeats, kernel, stride, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_BATCH_NORM_EPSILON = 1e-3

MIDDLE_BLOCK = 10
"""The last block of the 112-channel stage, at 1/16 of the input's resolution."""

Array = npt.NDArray[Any]


class EfficientNetLite0(tf.Module):
    """The convolutional part, without the classifier.

    Args:
      weights: tensors by their PyTorch names (`_blocks.0._bn1.weight`), in PyTorch's layouts.
    """

    def __init__(self, weights: Mapping[str, Array]) -> None:
        super().__init__(name="efficientnet_lite0")
        self._weights = {
            name: tf.Variable(value, trainable=False, name=name.lstrip("_")) for name, value in fold(weights).items()
        }

    def stages(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns spatial means of three depths of the network.

        Args:
          images: float32 [n, h, w, 3], scaled as the weights expect it.

        Returns:
          float32 `middle` [n, 112], `last` [n, 320] (last block) and `head` [n, 1280] (the usual feature vector).
        """
        x = self._conv(images, "_conv_stem", stride=2)
        found = {}
        index = 0
        for repeats, _kernel, stride, expansion, _channels in _STAGES:
            for repeat in range(repeats):
                x = self._block(x, f"_blocks.{index}", stride if repeat == 0 else 1, expansion, residual=repeat > 0)
                if index == MIDDLE_BLOCK:
                    found["middle"] = tf.reduce_mean(x, [1, 2])
                index += 1
        found["last"] = tf.reduce_mean(x, [1, 2])
        found["head"] = tf.reduce_mean(self._conv(x, "_conv_head"), [1, 2])
        return found

    def _block(self, x: tf.Tensor, name: str, stride: int, expansion: int, residual: bool) -> tf.Tensor:
        """An inverted residual block (MBConv)."""
        shortcut = x
        if expansion > 1:
            x = self._conv(x, f"{name}._expand_conv")
        x = self._conv(x, f"{name}._depthwise_conv", stride, depthwise=True)
        x = self._conv(x, f"{name}._project_conv", activation=False)
        return x + shortcut if residual else x

    def _conv(
        self, x: tf.Tensor, name: str, stride: int = 1, depthwise: bool = False, activation: bool = True
    ) -> tf.Tensor:
        convolution = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
        x = convolution(x, self._weights[f"{name}.kernel"], [1, stride, stride, 1], "SAME")
        x = tf.nn.bias_add(x, self._weights[f"{name}.bias"])
        return tf.nn.relu6(x) if activation else x


def fold(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Folds every batch normalisation into its convolution, and brings kernels into TensorFlow's layouts.

    Returns:
      float32 `<convolution>.kernel` ([h, w, in, out], depthwise [h, w, channels, 1]) and `<convolution>.bias`.
    """
    norms = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    for index in range(sum(stage[0] for stage in _STAGES)):
        for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            norms[f"_blocks.{index}.{conv}"] = f"_blocks.{index}.{norm}"
    folded = {}
    for conv, norm in norms.items():
        if f"{conv}.weight" not in weights:
            continue  # the first block does not expand
        gain = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
        kernel = weights[f"{conv}.weight"] * gain[:, None, None, None]
        # PyTorch: [out, in, h, w], depthwise [channels, 1, h, w].
        order = (2, 3, 0, 1) if "depthwise" in conv else (2, 3, 1, 0)
        folded[f"{conv}.kernel"] = np.ascontiguousarray(kernel.transpose(order), np.float32)
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
        folded[f"{conv}.bias"] = bias.astype(np.float32)
    return folded
