"""Training of the heads on cached features, under Ray Train on N workers.

Every worker holds the features and takes its part of each global batch; gradients and the loss are those of the
whole batch. All random choices follow from the seed and the step, so that a killed run continues from its last
checkpoint and ends with the same weights.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge import progress
from searchforge.config import TrainConfig
from searchforge.errors import JobError
from trainer.batches import TrainingSet, batch_plan, draw

Array = npt.NDArray[Any]

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises (preset `best`)."""

CHECKPOINTS = 10
"""Checkpoints of a run: a killed one repeats at most this part of its epochs."""

_CHECKPOINT = "checkpoint.npz"


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
      weights: of the dual encoder, see DualEncoder.state; their moving average where that is on.
      losses: mean loss of each epoch.
    """

    weights: dict[str, Array]
    losses: list[float]


def train_heads(config: TrainConfig, data: TrainingSet, folder: Path, name: str, threads: int) -> Trained:
    """Trains the heads; call it inside `cluster.ray_cluster`. A run of the same name continues where it was killed.

    Args:
      folder: where Ray Train keeps checkpoints; all nodes of the cluster must see it.
      name: of the run; derived from everything that the result depends on.
      threads: of each worker.

    Raises:
      JobError: the loss is not a number any more, or a worker failed.
    """
    import ray
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    counter = ray.remote(num_cpus=0)(_Counter).remote()
    settings = {"config": config.model_dump(), "data": [ray.put(data)], "threads": threads, "counter": counter}
    trainer = TensorflowTrainer(
        _worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=config.workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=name, storage_path=str(folder), checkpoint_config=CheckpointConfig(num_to_keep=1)),
    )
    try:
        with _shown_progress(counter, config.epochs):
            result = trainer.fit()
    except Exception as error:  # Ray wraps what a worker raised in errors of its own
        raise JobError(f"training of the heads failed: {_cause(error)}") from error
    if result.checkpoint is None:
        raise JobError("training ended without a checkpoint; remove the cache folder of the workspace and try again")
    with result.checkpoint.as_directory() as directory:
        state = _read(Path(directory) / _CHECKPOINT)
    weights = {key.removeprefix("average/"): value for key, value in state.items() if key.startswith("average/")}
    return Trained(weights, [float(loss) for loss in state["losses"]])


class _Counter:
    """A Ray actor: the epochs that are done."""

    def __init__(self) -> None:
        self._done = 0

    def set(self, done: int) -> None:
        self._done = done

    def get(self) -> int:
        return self._done


@contextlib.contextmanager
def _shown_progress(counter: Any, epochs: int) -> Iterator[None]:
    """Shows what the workers count, from a thread: Ray Train's own call returns only at the end."""
    import ray

    ended = threading.Event()

    def follow(advance: Callable[[int], None]) -> None:
        shown, last = 0, False
        while not last:
            last = ended.wait(0.5)
            done = ray.get(counter.get.remote())
            advance(done - shown)
            shown = done

    with progress.track("epochs of the heads", epochs) as advance:
        thread = threading.Thread(target=follow, args=(advance,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _worker(settings: dict[str, Any]) -> None:
    """Runs in every Ray Train worker."""
    import ray
    import ray.train
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(settings["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(2)  # one may wait for the other workers
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    config = TrainConfig(**settings["config"])
    data: TrainingSet = ray.get(settings["data"][0])
    rank, checkpoint = ray.train.get_context().get_world_rank(), ray.train.get_checkpoint()
    share, steps = batch_plan(config, len(data.images))
    run = Run(config, data, strategy, steps)
    if checkpoint:
        with checkpoint.as_directory() as directory:
            run.load(_read(Path(directory) / _CHECKPOINT))

    for epoch in range(len(run.losses), config.epochs):
        random = np.random.default_rng([config.seed, epoch])
        order = random.permutation(len(data.images))
        total = 0.0
        for step in range(steps):
            rows = order[step * share * config.workers :][: share * config.workers]
            batch = draw(config, data, rows, random, slice(rank * share, (rank + 1) * share))
            seed = np.array([config.seed, (epoch * steps + step) * config.workers + rank], np.int32)
            loss = float(run.step(*batch, seed))
            if not math.isfinite(loss):
                raise JobError(f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower train.learning_rate")
            total += loss
        run.losses.append(total / steps)
        if rank == 0:
            settings["counter"].set.remote(epoch + 1)
        if (epoch + 1) % math.ceil(config.epochs / CHECKPOINTS) and epoch + 1 < config.epochs:
            continue
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if rank == 0:
                np.savez(Path(folder) / _CHECKPOINT, **run.state())
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"epoch": epoch + 1, "loss": run.losses[-1]}, checkpoint=saved)


class Run:
    """The state of training: weights, their moving average, the optimizer and the losses so far.

    Attributes:
      losses: mean loss of each finished epoch.
      step: trains on what `draw` returned and a dropout seed, int32 [2]; returns the loss over the global batch.
    """

    def __init__(self, config: TrainConfig, data: TrainingSet, strategy: Any, steps: int) -> None:
        import tensorflow as tf
        import tf_keras

        from trainer.dual_encoder import DualEncoder, gradient_step

        self.losses: list[float] = []
        self._model = DualEncoder(config, data.images.shape[1], data.texts.shape[1])
        self._model.standardize(data.images, data.texts)
        variables = self._model.trainable_variables
        self._average = [tf.Variable(variable, trainable=False) for variable in variables]
        schedule = _schedule(config, steps)
        self._optimizer = tf_keras.optimizers.Adam(schedule)
        self._optimizer.build(variables)
        # The 2022 recipe's optimizer (TensorFlow Addons) does not multiply the decay with the learning rate.
        decay_rate = (lambda _step: 1.0) if config.preset == "recipe2022" else schedule
        gradients = gradient_step(strategy, self._model)

        @tf.function
        def step(images: Any, texts: Any, text_ids: Any, seed: Any) -> Any:
            loss, grads = gradients(images, texts, text_ids, seed)
            decay = config.weight_decay * decay_rate(self._optimizer.iterations)
            done = tf.cast(self._optimizer.iterations, tf.float32)
            # A young average follows the weights closely: it must not remember where they began.
            keep = tf.minimum(config.ema, (1.0 + done) / (10.0 + done)) if config.ema else 0.0
            for variable in variables:
                if variable is not self._model.log_temperature:
                    variable.assign_sub(decay * variable)
            self._optimizer.apply_gradients(zip(grads, variables, strict=True))
            for average, variable in zip(self._average, variables, strict=True):
                average.assign(keep * average + (1.0 - keep) * variable)
            return loss

        self.step: Callable[..., Any] = step

    def state(self) -> dict[str, Array]:
        """Returns everything that the rest of the run depends on; `average/...` are the weights to use."""
        weights = self._model.state()
        state = {f"weights/{name}": value for name, value in weights.items()}
        trained = self._model.trainable_variables
        now = [variable.numpy() for variable in trained]
        for variable, average in zip(trained, self._average, strict=True):
            variable.assign(average)
        state |= {f"average/{name}": value for name, value in self._model.state().items()}
        for variable, value in zip(trained, now, strict=True):
            variable.assign(value)
        state |= {f"optimizer/{i}": variable.numpy() for i, variable in enumerate(self._optimizer.variables)}
        return {**state, "losses": np.array(self.losses)}

    def load(self, state: dict[str, Array]) -> None:
        """Continues from what `state()` returned."""
        for prefix in ("average", "weights"):
            self._model.load({k.removeprefix(f"{prefix}/"): v for k, v in state.items() if k.startswith(prefix)})
            if prefix == "average":
                for average, variable in zip(self._average, self._model.trainable_variables, strict=True):
                    average.assign(variable)
        for i, variable in enumerate(self._optimizer.variables):
            variable.assign(state[f"optimizer/{i}"])
        self.losses = [float(loss) for loss in state["losses"]]


def _schedule(config: TrainConfig, steps: int) -> Any:
    """The preset's learning rate: warm-up and cosine, or the 2022 recipe's exponential decay after three epochs."""
    import tf_keras

    total = steps * config.epochs
    if config.preset == "recipe2022":
        last_steps = [steps * epoch - 1 for epoch in range(3, max(4, config.epochs))]
        rates = [config.learning_rate * math.exp(-0.1 * epoch) for epoch in range(len(last_steps) + 1)]
        return tf_keras.optimizers.schedules.PiecewiseConstantDecay(last_steps, rates)
    warm_up = max(1, round(WARM_UP * total))
    return tf_keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total - warm_up), warmup_target=config.learning_rate, warmup_steps=warm_up
    )


def _read(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _cause(error: BaseException) -> str:
    """The first message of a worker, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        first = next(iter(failures.values()))
        return _cause(first)
    inner = getattr(error, "cause", None) or error.__cause__
    return _cause(inner) if isinstance(inner, BaseException) else str(error).strip()
