"""Trains the projection heads on cached features, with AdamW and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.config import TrainConfig
from trainer.features.batches import TrainingSet, draw_batch
from trainer.fit.checkpoints import CheckpointStore
from trainer.fit.loop import TrainingResult, fit
from trainer.ray_cluster import Allocation

Array = npt.NDArray[Any]


def train_heads(
    config: TrainConfig, data: TrainingSet, store: CheckpointStore, name: str, allocation: Allocation
) -> TrainingResult:
    """Trains the heads; see `loop.fit`. The resulting weights are those of DualEncoder.state."""
    return fit(HeadTask(config, data), store, f"{name}-heads", allocation)


@dataclass(frozen=True)
class HeadTask:
    """Training of the projection heads; see loop.TrainingTask."""

    config: TrainConfig
    data: TrainingSet
    label: str = "training heads"

    @property
    def epochs(self) -> int:
        return self.config.epochs

    @property
    def images(self) -> int:
        return len(self.data.caption_counts)

    def start(self, strategy: Any, steps: int) -> HeadRun:
        return HeadRun(self.config, self.data, strategy, steps)

    def batch(self, rows: Array, random: np.random.Generator, part: slice) -> tuple[Array, ...]:
        return draw_batch(self.config, self.data, rows, random, part)


class HeadRun:
    """State of training the heads; see loop.TrainingRun. `result/...` are the averaged weights, if enabled."""

    def __init__(self, config: TrainConfig, data: TrainingSet, strategy: Any, steps: int) -> None:
        import tensorflow as tf

        from trainer.model.dual_encoder import DualEncoder, gradient_step
        from trainer.model.optimizer import AdamW

        self._model = DualEncoder(config, data.images.shape[-1], data.texts.shape[1])
        self._model.standardize(data.images[0], data.texts)
        variables = self._model.trainable_variables
        self._average = [tf.Variable(variable, trainable=False) for variable in variables]
        schedule = _schedule(config, steps)
        # The 2022 recipe's optimizer (TensorFlow Addons) does not scale the weight decay with the learning rate.
        decay_factor = (lambda _step: 1.0) if config.preset == "recipe2022" else schedule
        self._optimizer = AdamW(
            variables, schedule, lambda step: config.weight_decay * decay_factor(step), [self._model.log_temperature]
        )
        gradients = gradient_step(strategy, self._model)

        @tf.function
        def step(images: Any, texts: Any, text_ids: Any, seed: Any) -> Any:
            loss, grads = gradients(images, texts, text_ids, seed)
            done = tf.cast(self._optimizer.steps, tf.float32)
            # Use a lower decay in the first steps, so that the average forgets the initial weights.
            keep = tf.minimum(config.ema, (1.0 + done) / (10.0 + done)) if config.ema else 0.0
            self._optimizer.apply(grads)
            for average, variable in zip(self._average, variables, strict=True):
                average.assign(keep * average + (1.0 - keep) * variable)
            return loss

        self.step: Callable[..., Any] = step

    @property
    def learning_rate(self) -> float:
        return self._optimizer.rate

    @property
    def temperature(self) -> float:
        return float(self._model.temperature)

    def state(self) -> dict[str, Array]:
        weights = self._model.state()
        state = {f"weights/{name}": value for name, value in weights.items()}
        trained = self._model.trainable_variables
        current = [variable.numpy() for variable in trained]
        for variable, average in zip(trained, self._average, strict=True):
            variable.assign(average)
        state |= {f"result/{name}": value for name, value in self._model.state().items()}
        for variable, value in zip(trained, current, strict=True):
            variable.assign(value)
        return {**state, **{f"optimizer/{i}": variable.numpy() for i, variable in enumerate(self._optimizer.variables)}}

    def load(self, state: dict[str, Array]) -> None:
        for prefix in ("result/", "weights/"):
            self._model.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            if prefix == "result/":
                for average, variable in zip(self._average, self._model.trainable_variables, strict=True):
                    average.assign(variable)
        for i, variable in enumerate(self._optimizer.variables):
            variable.assign(state[f"optimizer/{i}"])


def _schedule(config: TrainConfig, steps: int) -> Any:
    """Returns the preset's learning rate schedule: cosine with warm-up, or exponential decay after three epochs."""
    import tf_keras

    from trainer.model.optimizer import cosine

    if config.preset == "recipe2022":
        last_steps = [steps * epoch - 1 for epoch in range(3, max(4, config.epochs))]
        rates = [config.learning_rate * math.exp(-0.1 * epoch) for epoch in range(len(last_steps) + 1)]
        return tf_keras.optimizers.schedules.PiecewiseConstantDecay(last_steps, rates)
    return cosine(config.learning_rate, steps * config.epochs)
