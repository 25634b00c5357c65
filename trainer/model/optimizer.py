"""Implements Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101) and a cosine schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

WARM_UP = 0.05
"""Fraction of the steps with a rising learning rate."""


class AdamW:
    """Updates variables by Adam with decoupled weight decay.

    Args:
      variables: The variables to train.
      rate: Learning rate schedule.
      decay: Function from the step to the fraction by which weights decay in that step.
      no_decay: Variables without weight decay.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        rate: Any,
        decay: Callable[[tf.Tensor], Any],
        no_decay: Sequence[tf.Variable] = (),
    ) -> None:
        self._trained = list(variables)
        self._rate, self._decay = rate, decay
        excluded = {id(variable) for variable in no_decay}
        self._decayed = [variable for variable in self._trained if id(variable) not in excluded]
        self._adam = tf_keras.optimizers.Adam(rate)
        self._adam.build(self._trained)

    @property
    def variables(self) -> list[tf.Variable]:
        """State of the optimizer."""
        return list(self._adam.variables)

    @property
    def steps(self) -> tf.Variable:
        """Number of completed steps, an integer variable."""
        return self._adam.iterations

    @property
    def rate(self) -> float:
        """Learning rate of the last completed step."""
        return float(self._rate(tf.maximum(self.steps - 1, 0)))

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Applies a step; gradients are in the order of the variables."""
        decay = self._decay(self.steps)
        for variable in self._decayed:
            variable.assign_sub(decay * variable)
        self._adam.apply_gradients(zip(gradients, self._trained, strict=True))


def cosine(rate: float, steps: int) -> Any:
    """Returns a schedule with a linear warm-up to `rate`, and a cosine decay to 0 at the last step."""
    warm_up = max(1, round(WARM_UP * steps))
    return tf_keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=rate, warmup_steps=warm_up
    )
