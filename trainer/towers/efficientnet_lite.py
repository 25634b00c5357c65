"""EfficientNet-Lite (Tan and Le 2019, arXiv:1905.11946; the Lite variant: ReLU6, no squeeze-and-excite).

The default image tower is one of these networks, which are designed for TensorFlow Lite and built here from plain
TensorFlow operations. Batch normalisations are folded into the convolutions when weights are loaded, which makes the
networks faster and easier to quantize. The sizes differ in depth, in width (given by the weights) and in image size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from searchforge.errors import UsageError
from trainer.towers.layers import cast_for_product

_STAGES = (  # repeats, stride, expansion
    (1, 1, 1),
    (2, 2, 6),
    (2, 2, 6),
    (3, 2, 6),
    (3, 1, 6),
    (4, 2, 6),
    (1, 1, 6),
)
_MIDDLE_STAGE = 4
"""Index of the last stage at 1/16 of the input's resolution."""

_BATCH_NORM_EPSILON = 1e-3

Array = npt.NDArray[Any]


class EfficientNetLite(tf.Module):
    """EfficientNet-Lite without its classifier.

    Args:
      weights: Tensors by their PyTorch names (`_blocks.0._bn1.weight`), in PyTorch's layouts.
      depth: Depth coefficient; 1.0 for Lite0.

    Attributes:
      widths: Lengths of the vectors that `stages` returns, by name.

    Raises:
      UsageError: The weights have a different depth.
    """

    def __init__(self, weights: Mapping[str, Array], depth: float) -> None:
        super().__init__(name="efficientnet_lite")
        # The Lite variants do not scale the first and the last stage.
        self._repeats = [
            repeats if index in (0, len(_STAGES) - 1) else math.ceil(repeats * depth)
            for index, (repeats, _, _) in enumerate(_STAGES)
        ]
        blocks = sum(self._repeats)
        actual = len({name.split(".")[1] for name in weights if name.startswith("_blocks.")})
        if actual != blocks:
            raise UsageError(f"EfficientNet-Lite weights have {actual} blocks, expected {blocks} for depth {depth}")
        self._weights = {
            name: tf.Variable(value, trainable=False, name=name.lstrip("_"))
            for name, value in fold_batch_norms(weights, blocks).items()
        }
        middle = sum(self._repeats[: _MIDDLE_STAGE + 1]) - 1
        ends = {"middle": f"_blocks.{middle}._project_conv", "last": f"_blocks.{blocks - 1}._project_conv"}
        self.widths = {
            name: int(self._weights[f"{conv}.bias"].shape[0]) for name, conv in {**ends, "head": "_conv_head"}.items()
        }

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        """Returns all weights by name, or those of the last blocks and the layers after them."""
        if last is None:
            return dict(self._weights)
        blocks = sum(self._repeats)
        if last > blocks:
            raise UsageError(f"this EfficientNet-Lite has {blocks} blocks, not {last}; choose fewer, or `full`")
        parts = ("_conv_head.", *(f"_blocks.{index}." for index in range(blocks - last, blocks)))
        return {name: variable for name, variable in self._weights.items() if name.startswith(parts)}

    def stages(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns spatial means at three depths of the network.

        Args:
          images: float32 [n, h, w, 3], scaled as the weights require.

        Returns:
          float32 `middle` (at 1/16 of the resolution), `last` (last block) and `head` (the usual feature vector), each
          [n, widths[name]].
        """
        x = self._conv(images, "_conv_stem", stride=2)
        means = {}
        index = 0
        for stage, ((_, stride, expansion), repeats) in enumerate(zip(_STAGES, self._repeats, strict=True)):
            for repeat in range(repeats):
                x = self._block(x, f"_blocks.{index}", stride if repeat == 0 else 1, expansion, residual=repeat > 0)
                index += 1
            if stage == _MIDDLE_STAGE:
                means["middle"] = tf.reduce_mean(x, [1, 2])
        means["last"] = tf.reduce_mean(x, [1, 2])
        means["head"] = tf.reduce_mean(self._conv(x, "_conv_head"), [1, 2])
        return means

    def _block(self, x: tf.Tensor, name: str, stride: int, expansion: int, residual: bool) -> tf.Tensor:
        """Applies an inverted residual block (MBConv)."""
        shortcut = x
        if expansion > 1:
            x = self._conv(x, f"{name}._expand_conv")
        x = self._conv(x, f"{name}._depthwise_conv", stride, depthwise=True)
        x = self._conv(x, f"{name}._project_conv", activation=False)
        return x + shortcut if residual else x

    def _conv(
        self, x: tf.Tensor, name: str, stride: int = 1, depthwise: bool = False, activation: bool = True
    ) -> tf.Tensor:
        kernel, strides = self._weights[f"{name}.kernel"], [1, stride, stride, 1]
        if depthwise:  # memory-bound, so bfloat16 would not pay off
            x = tf.nn.depthwise_conv2d(x, kernel, strides, "SAME")
        else:
            x = tf.cast(tf.nn.conv2d(*cast_for_product(x, kernel), strides, "SAME"), tf.float32)
        x = tf.nn.bias_add(x, self._weights[f"{name}.bias"])
        return tf.nn.relu6(x) if activation else x


def fold_batch_norms(weights: Mapping[str, Array], blocks: int) -> dict[str, Array]:
    """Folds each batch normalisation into its convolution, and converts kernels to TensorFlow's layouts.

    Returns:
      float32 `<convolution>.kernel` ([h, w, in, out], depthwise [h, w, channels, 1]) and `<convolution>.bias`.
    """
    norms = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    for index in range(blocks):
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
