"""Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101) and a schedule of its rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""


class AdamW:
    """Trains some variables.

    Args:
      variables: to be trained.
      rate: learning rate by step.
      decay: share of a weight that is taken away in a step, by step.
      kept: variables without decay.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        rate: Any,
        decay: Callable[[tf.Tensor], Any],
        kept: Sequence[tf.Variable] = (),
    ) -> None:
        self._trained = list(variables)
        self._rate, self._decay = rate, decay
        unchanged = {id(variable) for variable in kept}
        self._decayed = [variable for variable in self._trained if id(variable) not in unchanged]
        self._adam = tf_keras.optimizers.Adam(rate)
        self._adam.build(self._trained)

    @property
    def variables(self) -> list[tf.Variable]:
        """The optimizer's own state."""
        return list(self._adam.variables)

    @property
    def steps(self) -> tf.Variable:
        """Steps that are done, an integer."""
        return self._adam.iterations

    @property
    def rate(self) -> float:
        """Learning rate of the last step that was done."""
        return float(self._rate(tf.maximum(self.steps - 1, 0)))

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Takes a step; gradients are in the order of the variables."""
        decay = self._decay(self.steps)
        for variable in self._decayed:
            variable.assign_sub(decay * variable)
        self._adam.apply_gradients(zip(gradients, self._trained, strict=True))


def cosine(rate: float, steps: int) -> Any:
    """A schedule: linear warm-up to `rate`, then a cosine down to 0 at the last of all steps."""
    warm_up = max(1, round(WARM_UP * steps))
    return tf_keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=rate, warmup_steps=warm_up
    )
