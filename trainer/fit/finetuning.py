"""Tuning of towers: training goes on from the heads that were trained on frozen features, through the towers.

The loss is that of the whole global batch, whatever fits into memory (GradCache: Gao et al. 2021, arXiv:2101.06983):
features are computed in micro-batches without gradients, the gradient of the loss with respect to the features is
taken at once, and is then carried through the tower in the same micro-batches. Towers have neither dropout nor batch
statistics, so that both passes are the same function.

The plain view of each image is used, and no mixing.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.config import TrainConfig
from searchforge.errors import UsageError
from searchforge.preprocessing import Preprocessing
from trainer.data import reread_pixels
from trainer.features.batches import TrainingSet, choose_captions
from trainer.fit.checkpoints import CheckpointStore
from trainer.fit.loop import TrainingResult, fit
from trainer.towers import TowerSpec, load_image_tower, load_text_tower

Array = npt.NDArray[Any]

FROZEN = "frozen"


@dataclass(frozen=True)
class FinetuningResult:
    """What tuning gives.

    Attributes:
      heads: of the dual encoder, see DualEncoder.state.
      towers: by modality, weights for Tower.assign; empty where it stayed frozen.
      history: see loop.TrainingResult.
    """

    heads: dict[str, Array]
    towers: dict[str, dict[str, Array]]
    history: list[dict[str, float]]


def is_enabled(config: TrainConfig) -> bool:
    """Whether any tower is tuned."""
    return config.tune_image != FROZEN or config.tune_text != FROZEN


def tunable_variables(tower: Any, part: str) -> dict[str, Any]:
    """Returns the variables of a part of a tower, `last_<k>_...` or `full`, by name; none of a frozen one.

    Raises:
      UsageError: the tower has no such part.
    """
    if part == FROZEN:
        return {}
    last = re.fullmatch(r"last_(\d+)_\w+", part)
    found: dict[str, Any] = tower.tunable_variables(int(last[1]) if last else None)
    return found


def check_settings(config: TrainConfig, image_tower: Any, text_tower: Any) -> None:
    """Raises UsageError where a part that is to be tuned is not there."""
    for key, part, tower in (
        ("tune_image", config.tune_image, image_tower),
        ("tune_text", config.tune_text, text_tower),
    ):
        try:
            tunable_variables(tower, part)
        except UsageError as error:
            raise UsageError(f"train.{key} is {part}, but {error}") from error


def finetune(task: FinetuningTask, store: CheckpointStore, name: str, threads: int) -> FinetuningResult:
    """Tunes towers and heads; see `loop.fit` for the arguments and errors."""
    trained = fit(task, store, f"{name}-towers", threads)
    towers = {modality: _weights(trained, modality) for modality in ("image", "text")}
    return FinetuningResult(_weights(trained, "heads"), towers, trained.history)


def _weights(trained: TrainingResult, prefix: str) -> dict[str, Array]:
    return {
        key.removeprefix(f"{prefix}/"): value for key, value in trained.weights.items() if key.startswith(f"{prefix}/")
    }


@dataclass(frozen=True)
class FinetuningTask:
    """See loop.Task.

    Attributes:
      data: features of the frozen towers; those of a tower that is tuned are not used.
      specs: image and text tower.
      paths, texts: the images and captions in the rows of `data`.
      heads: weights to begin with, see DualEncoder.state.
    """

    config: TrainConfig
    data: TrainingSet
    specs: tuple[TowerSpec, TowerSpec]
    paths: Sequence[str]
    texts: Sequence[str]
    heads: Mapping[str, Array]
    label: str = "fine-tuning towers"

    @property
    def epochs(self) -> int:
        return self.config.tune_epochs

    @property
    def images(self) -> int:
        return len(self.paths)

    def start(self, strategy: Any, steps: int) -> FinetuningRun:
        return FinetuningRun(self, strategy, steps)

    def batch(self, rows: Array, random: np.random.Generator, part: slice) -> tuple[Any, ...]:
        ids = choose_captions(self.config, self.data, rows, random)[part]
        if self.config.tune_image == FROZEN:
            images = self.data.images[0][rows[part]]
        else:
            images = np.array([self.paths[row] for row in rows[part]], object)
        if self.config.tune_text == FROZEN:
            texts = self.data.texts[ids]
        else:
            texts = np.array([[self.texts[i] for i in row] for row in ids], object)
        return images, texts, ids


class FinetuningRun:
    """See loop.Run; `result/heads/...`, `result/image/...` and `result/text/...` are the weights."""

    def __init__(self, task: FinetuningTask, strategy: Any, steps: int) -> None:
        import tensorflow as tf

        from trainer.model.dual_encoder import DualEncoder
        from trainer.model.optimizer import AdamW, cosine

        config, data = task.config, task.data
        self._model = DualEncoder(config, data.images.shape[-1], data.texts.shape[-1])
        self._model.load(task.heads)
        self._sides: dict[str, MicroBatchedTower] = {}
        rates = []
        if config.tune_image != FROZEN:
            tower = load_image_tower(task.specs[0])
            self._preprocessing = tower.preprocessing
            run, variables = functools.partial(_run_on_pixels, tower), tunable_variables(tower, config.tune_image)
            self._sides["image"] = MicroBatchedTower(run, variables, config.tune_micro_batch)
            rates.append(config.tune_image_learning_rate)
        if config.tune_text != FROZEN:
            text_tower = load_text_tower(task.specs[1])
            variables = tunable_variables(text_tower, config.tune_text)
            self._sides["text"] = MicroBatchedTower(text_tower, variables, config.tune_micro_batch)
            rates.append(config.tune_text_learning_rate)

        def optimizer(variables: Sequence[Any], rate: float) -> AdamW:
            schedule = cosine(rate, steps * task.epochs)
            kept = [self._model.log_temperature]
            return AdamW(variables, schedule, lambda step: config.weight_decay * schedule(step), kept)

        self._optimizers = [optimizer(self._model.trainable_variables, config.tune_learning_rate)]
        for side, rate in zip(self._sides.values(), rates, strict=True):
            self._optimizers.append(optimizer(list(side.variables.values()), rate))
        self._pool = ThreadPoolExecutor(tf.config.threading.get_intra_op_parallelism_threads() or 1)

        @tf.function(reduce_retracing=True)
        def compare(*batch: Any) -> Any:
            return strategy.run(self._compare, args=batch)

        @tf.function
        def add_up(gradients: Any) -> Any:
            def over_workers(*parts: Any) -> Any:
                # An argument of a function has no device yet, and the reduction asks for one.
                parts = tuple(tf.identity(part) for part in parts)
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(parts))

            return strategy.run(over_workers, args=tuple(gradients))

        @tf.function
        def apply(gradients: Any) -> None:
            for one, own in zip(self._optimizers, gradients, strict=True):
                one.apply(own)

        self._compare_all, self._add_up, self._apply = compare, add_up, apply
        self.step: Callable[..., Any] = self._step

    def _step(self, *batch: Any) -> Any:
        loss, gradients = self.gradients(*batch)
        self._apply(gradients)
        return loss

    def gradients(self, images: Array, texts: Array, text_ids: Array, seed: Array | None) -> tuple[Any, list[Any]]:
        """Returns the loss over the global batch, and its gradients for the heads and for each tuned tower.

        Arguments are what `FinetuningTask.batch` returned, and a dropout seed, or None for no dropout.
        """
        inputs: dict[str, Any] = {}
        if "image" in self._sides:
            paths = map(Path, images)
            pixels = self._pool.map(functools.partial(reread_pixels, preprocessing=self._preprocessing), paths)
            inputs["image"] = images = np.stack(list(pixels))
            images = self._sides["image"].features(images)
        if "text" in self._sides:
            inputs["text"] = texts.reshape(-1)
            texts = self._sides["text"].features(inputs["text"]).reshape(*text_ids.shape, -1)
        # All pairs of heads are given the same batch.
        loss, heads, *by_features = self._compare_all(
            images[:, np.newaxis], texts[:, np.newaxis], text_ids[:, np.newaxis], seed
        )
        found = [heads]
        for side, gradient in zip(("image", "text"), by_features, strict=True):
            if side in self._sides:
                rows = gradient.numpy().reshape(len(inputs[side]), -1)
                found.append(self._add_up(self._sides[side].gradients(inputs[side], rows)))
        return loss, found

    def _compare(self, images: Any, texts: Any, text_ids: Any, seed: Any) -> tuple[Any, ...]:
        """In a replica: the global loss, its gradients for the heads over all workers, and for the own features."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch([images, texts])
            share = self._model.loss(images, texts, text_ids, seed)
        heads = self._model.trainable_variables
        *own, by_image, by_text = tape.gradient(share, [*heads, images, texts])
        context = tf.distribute.get_replica_context()
        total, *summed = context.all_reduce(tf.distribute.ReduceOp.SUM, [share, *own])
        return total, summed, by_image, by_text

    @property
    def learning_rate(self) -> float:
        return self._optimizers[0].rate

    @property
    def temperature(self) -> float:
        return float(self._model.temperature)

    def state(self) -> dict[str, Array]:
        state = {f"result/heads/{name}": value for name, value in self._model.state().items()}
        for side, tower in self._sides.items():
            state |= {f"result/{side}/{name}": variable.numpy() for name, variable in tower.variables.items()}
        for i, optimizer in enumerate(self._optimizers):
            state |= {f"optimizer/{i}/{j}": variable.numpy() for j, variable in enumerate(optimizer.variables)}
        return state

    def load(self, state: dict[str, Array]) -> None:
        heads = {k.removeprefix("result/heads/"): v for k, v in state.items() if k.startswith("result/heads/")}
        self._model.load(heads)
        for side, tower in self._sides.items():
            for name, variable in tower.variables.items():
                variable.assign(state[f"result/{side}/{name}"])
        for i, optimizer in enumerate(self._optimizers):
            for j, variable in enumerate(optimizer.variables):
                variable.assign(state[f"optimizer/{i}/{j}"])


class MicroBatchedTower:
    """A tower that takes as many inputs at once as its memory allows, and its gradient for all of them.

    On a GPU its products are of bfloat16 numbers, as far as it is made of trainer.towers.layers.

    Args:
      tower: float32 [n, width] of a batch of inputs.
      variables: to be trained, by name.
      size: inputs at once.
    """

    def __init__(self, tower: Callable[[Any], Any], variables: dict[str, Any], size: int) -> None:
        import tensorflow as tf

        from trainer.towers.layers import mixed_precision

        self.variables = variables
        self._size = size
        trained = list(variables.values())
        precision = mixed_precision if tf.config.list_physical_devices("GPU") else contextlib.nullcontext

        @tf.function(reduce_retracing=True)
        def forward(inputs: Any) -> Any:
            with precision():
                return tower(inputs)

        @tf.function(reduce_retracing=True)
        def backward(inputs: Any, by_features: Any) -> Any:
            with precision(), tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(trained)
                features = tower(inputs)
            zero = tf.UnconnectedGradients.ZERO
            found = tape.gradient(features, trained, by_features, unconnected_gradients=zero)
            return [tf.convert_to_tensor(gradient) for gradient in found]  # that of a table of words is sparse

        self._forward, self._backward = forward, backward

    def features(self, inputs: Array) -> Array:
        """Returns float32 [n, width]."""
        return np.concatenate([self._forward(inputs[part]).numpy() for part in self._parts(len(inputs))])

    def gradients(self, inputs: Array, by_features: Array) -> list[Any]:
        """Returns the gradients of the variables, in their order, given those of the features, float32 [n, width]."""
        total: list[Any] = []
        for part in self._parts(len(inputs)):
            found = self._backward(inputs[part], by_features[part])
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        return total

    def _parts(self, count: int) -> list[slice]:
        return [slice(i, i + self._size) for i in range(0, count, self._size)]


def _run_on_pixels(tower: Any, pixels: Any) -> Any:
    """Features of uint8 [n, h, w, 3]."""
    import tensorflow as tf

    preprocessing: Preprocessing = tower.preprocessing
    return tower((tf.cast(pixels, tf.float32) - preprocessing.mean) / np.float32(preprocessing.std))
