"""Fine-tunes towers together with heads that were trained on frozen features.

GradCache (Gao et al. 2021, arXiv:2101.06983) gives the gradient of the whole global batch in limited memory: features
are computed in micro-batches without gradients, the gradient of the loss with respect to all features is taken at
once, and is then backpropagated through the tower in the same micro-batches. Towers have neither dropout nor batch
statistics, so both passes compute the same function.

Images are not augmented, and mixup is not applied.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.captions.image_reader import ImageReader
from searchforge.config import TrainConfig
from searchforge.errors import UsageError
from searchforge.preprocessing import Preprocessing
from trainer.data import reread_pixels
from trainer.features.batches import TrainingSet, choose_captions
from trainer.fit.checkpoints import CheckpointStore
from trainer.fit.loop import TrainingResult, fit
from trainer.ray_cluster import Allocation
from trainer.towers import TowerSpec, load_image_tower, load_text_tower

Array = npt.NDArray[Any]

FROZEN = "frozen"


@dataclass(frozen=True)
class FinetuningResult:
    """Result of fine-tuning.

    Attributes:
      heads: Weights of the dual encoder; see DualEncoder.state.
      towers: Weights for Tower.assign, by modality; empty for a frozen tower.
      history: See loop.TrainingResult.
    """

    heads: dict[str, Array]
    towers: dict[str, dict[str, Array]]
    history: list[dict[str, float]]


def is_enabled(config: TrainConfig) -> bool:
    """Returns whether any tower is to be fine-tuned."""
    return config.tune_image != FROZEN or config.tune_text != FROZEN


def tunable_variables(tower: Any, part: str) -> dict[str, Any]:
    """Returns the variables to fine-tune by name: none, all, or those of the last blocks or layers.

    Args:
      part: `frozen`, `full`, or `last_<k>_blocks` or `last_<k>_layers`.

    Raises:
      UsageError: The tower has no such part.
    """
    if part == FROZEN:
        return {}
    last = re.fullmatch(r"last_(\d+)_\w+", part)
    variables: dict[str, Any] = tower.tunable_variables(int(last[1]) if last else None)
    return variables


def check_settings(config: TrainConfig, image_tower: Any, text_tower: Any) -> None:
    """Raises UsageError if a tower lacks the part that is to be fine-tuned."""
    for key, part, tower in (
        ("tune_image", config.tune_image, image_tower),
        ("tune_text", config.tune_text, text_tower),
    ):
        try:
            tunable_variables(tower, part)
        except UsageError as error:
            raise UsageError(f"train.{key} is {part}, but {error}") from error


def finetune(task: FinetuningTask, store: CheckpointStore, name: str, allocation: Allocation) -> FinetuningResult:
    """Fine-tunes towers and heads; see `loop.fit` for arguments and errors."""
    trained = fit(task, store, f"{name}-towers", allocation)
    towers = {modality: _weights(trained, modality) for modality in ("image", "text")}
    return FinetuningResult(_weights(trained, "heads"), towers, trained.history)


def _weights(trained: TrainingResult, prefix: str) -> dict[str, Array]:
    return {
        key.removeprefix(f"{prefix}/"): value for key, value in trained.weights.items() if key.startswith(f"{prefix}/")
    }


@dataclass(frozen=True)
class FinetuningTask:
    """Fine-tuning of towers and heads; see loop.TrainingTask.

    Attributes:
      data: Features of the frozen towers; not used for towers that are fine-tuned.
      specs: Image tower and text tower.
      uris, texts: Images (paths or URIs) and captions, in the order of the rows of `data`.
      heads: Initial weights; see DualEncoder.state.
      hashes: SHA-256 of each image by URI, by which the reader's cache finds it.
      reader: Reads the images.
    """

    config: TrainConfig
    data: TrainingSet
    specs: tuple[TowerSpec, TowerSpec]
    uris: Sequence[str]
    texts: Sequence[str]
    heads: Mapping[str, Array]
    hashes: Mapping[str, str] = field(default_factory=dict)
    reader: ImageReader = field(default_factory=ImageReader)
    label: str = "fine-tuning towers"

    @property
    def epochs(self) -> int:
        return self.config.tune_epochs

    @property
    def images(self) -> int:
        return len(self.uris)

    def start(self, strategy: Any, steps: int) -> FinetuningRun:
        return FinetuningRun(self, strategy, steps)

    def batch(self, rows: Array, random: np.random.Generator, part: slice) -> tuple[Any, ...]:
        ids = choose_captions(self.config, self.data, rows, random)[part]
        if self.config.tune_image == FROZEN:
            images = self.data.images[0][rows[part]]
        else:
            images = np.array([self.uris[row] for row in rows[part]], object)
        if self.config.tune_text == FROZEN:
            texts = self.data.texts[ids]
        else:
            texts = np.array([[self.texts[i] for i in row] for row in ids], object)
        return images, texts, ids


class FinetuningRun:
    """State of fine-tuning; see loop.TrainingRun. `result/` has the weights of `heads/`, `image/` and `text/`."""

    def __init__(self, task: FinetuningTask, strategy: Any, steps: int) -> None:
        import tensorflow as tf

        from trainer.model.dual_encoder import DualEncoder
        from trainer.model.optimizer import AdamW, cosine

        self._task, config, data = task, task.config, task.data
        self._model = DualEncoder(config, data.images.shape[-1], data.texts.shape[-1])
        self._model.load(task.heads)
        self._towers: dict[str, MicroBatchedTower] = {}
        rates = []
        if config.tune_image != FROZEN:
            tower = load_image_tower(task.specs[0])
            self._preprocessing = tower.preprocessing
            run, variables = functools.partial(_run_on_pixels, tower), tunable_variables(tower, config.tune_image)
            self._towers["image"] = MicroBatchedTower(run, variables, config.tune_micro_batch)
            rates.append(config.tune_image_learning_rate)
        if config.tune_text != FROZEN:
            text_tower = load_text_tower(task.specs[1])
            variables = tunable_variables(text_tower, config.tune_text)
            self._towers["text"] = MicroBatchedTower(text_tower, variables, config.tune_micro_batch)
            rates.append(config.tune_text_learning_rate)

        def optimizer(variables: Sequence[Any], rate: float) -> AdamW:
            schedule = cosine(rate, steps * task.epochs)
            no_decay = [self._model.log_temperature]
            return AdamW(variables, schedule, lambda step: config.weight_decay * schedule(step), no_decay)

        self._optimizers = [optimizer(self._model.trainable_variables, config.tune_learning_rate)]
        for tuned, rate in zip(self._towers.values(), rates, strict=True):
            self._optimizers.append(optimizer(list(tuned.variables.values()), rate))
        self._pool = ThreadPoolExecutor(tf.config.threading.get_intra_op_parallelism_threads() or 1)

        @tf.function(reduce_retracing=True)
        def compare(*batch: Any) -> Any:
            return strategy.run(self._compare, args=batch)

        @tf.function
        def add_up(gradients: Any) -> Any:
            def over_workers(*parts: Any) -> Any:
                # The reduction needs tensors with a device, which the arguments of a function do not have.
                parts = tuple(tf.identity(part) for part in parts)
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(parts))

            return strategy.run(over_workers, args=tuple(gradients))

        @tf.function
        def apply(gradients: Any) -> None:
            for each, part in zip(self._optimizers, gradients, strict=True):
                each.apply(part)

        self._compare_all, self._add_up, self._apply = compare, add_up, apply
        self.step: Callable[..., Any] = self._step

    def _step(self, *batch: Any) -> Any:
        loss, gradients = self.gradients(*batch)
        self._apply(gradients)
        return loss

    def _pixels(self, uri: str) -> npt.NDArray[np.uint8]:
        return reread_pixels(uri, self._task.hashes.get(uri, ""), self._task.reader, self._preprocessing)

    def gradients(self, images: Array, texts: Array, text_ids: Array, seed: Array | None) -> tuple[Any, list[Any]]:
        """Returns the global batch's loss, and its gradients for the heads and for each fine-tuned tower.

        Args:
          images, texts, text_ids: The result of `FinetuningTask.batch`.
          seed: Dropout seed, int32 [2], or None for no dropout.
        """
        inputs: dict[str, Any] = {}
        if "image" in self._towers:
            inputs["image"] = images = np.stack(list(self._pool.map(self._pixels, images)))
            images = self._towers["image"].features(images)
        if "text" in self._towers:
            inputs["text"] = texts.reshape(-1)
            texts = self._towers["text"].features(inputs["text"]).reshape(*text_ids.shape, -1)
        # All ensemble members share the same batch.
        loss, heads, *by_features = self._compare_all(
            images[:, np.newaxis], texts[:, np.newaxis], text_ids[:, np.newaxis], seed
        )
        gradients = [heads]
        for modality, gradient in zip(("image", "text"), by_features, strict=True):
            if modality in self._towers:
                rows = gradient.numpy().reshape(len(inputs[modality]), -1)
                gradients.append(self._add_up(self._towers[modality].gradients(inputs[modality], rows)))
        return loss, gradients

    def _compare(self, images: Any, texts: Any, text_ids: Any, seed: Any) -> tuple[Any, ...]:
        """Returns the global loss and its gradients for the heads, summed over workers, and for the local features."""
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
        for modality, tower in self._towers.items():
            state |= {f"result/{modality}/{name}": variable.numpy() for name, variable in tower.variables.items()}
        for i, optimizer in enumerate(self._optimizers):
            state |= {f"optimizer/{i}/{j}": variable.numpy() for j, variable in enumerate(optimizer.variables)}
        return state

    def load(self, state: dict[str, Array]) -> None:
        heads = {k.removeprefix("result/heads/"): v for k, v in state.items() if k.startswith("result/heads/")}
        self._model.load(heads)
        for modality, tower in self._towers.items():
            for name, variable in tower.variables.items():
                variable.assign(state[f"result/{modality}/{name}"])
        for i, optimizer in enumerate(self._optimizers):
            for j, variable in enumerate(optimizer.variables):
                variable.assign(state[f"optimizer/{i}/{j}"])


class MicroBatchedTower:
    """Runs a tower and its backward pass in micro-batches.

    On a GPU, the layers of trainer.towers.layers multiply in bfloat16.

    Args:
      tower: Function from a batch of inputs to features, float32 [n, width].
      variables: Variables to train, by name.
      size: Number of inputs per micro-batch.
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
            gradients = tape.gradient(features, trained, by_features, unconnected_gradients=zero)
            return [tf.convert_to_tensor(gradient) for gradient in gradients]  # embedding tables have sparse gradients

        self._forward, self._backward = forward, backward

    def features(self, inputs: Array) -> Array:
        """Returns the features of the inputs, float32 [n, width]."""
        return np.concatenate([self._forward(inputs[part]).numpy() for part in self._parts(len(inputs))])

    def gradients(self, inputs: Array, by_features: Array) -> list[Any]:
        """Backpropagates the features' gradients, float32 [n, width], to the variables, in their order."""
        total: list[Any] = []
        for part in self._parts(len(inputs)):
            gradients = self._backward(inputs[part], by_features[part])
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else gradients
        return total

    def _parts(self, count: int) -> list[slice]:
        return [slice(i, i + self._size) for i in range(0, count, self._size)]


def _run_on_pixels(tower: Any, pixels: Any) -> Any:
    """Runs an image tower on unscaled pixels, uint8 [n, h, w, 3]."""
    import tensorflow as tf

    preprocessing: Preprocessing = tower.preprocessing
    return tower((tf.cast(pixels, tf.float32) - preprocessing.mean) / preprocessing.std)
