"""Runs a training task on N Ray Train workers, with checkpoints, recovery and a history of its epochs.

Each worker processes its part of every global batch; loss and gradients are those of the whole batch. All random
choices depend only on the seed and the step, so a run that resumes from a checkpoint ends with the same weights.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from searchforge import progress
from searchforge.config import TrainConfig
from searchforge.errors import JobError, PermanentError
from trainer.features.batches import batch_plan
from trainer.fit.checkpoints import CheckpointStore
from trainer.fit.epoch_counter import EpochCounter
from trainer.ray_cluster import Allocation, failure_may_pass, root_cause

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

CHECKPOINTS = 10
"""Number of checkpoints per run; a killed run repeats at most a tenth of its epochs."""

MAX_FAILURES = 5
"""Maximum number of failures of workers after which one run continues."""

_CHECKPOINT = "checkpoint.npz"
_HISTORY = ("epoch", "loss", "learning_rate", "temperature", "seconds")


class TrainingRun(Protocol):
    """State of a training task in one worker.

    Attributes:
      step: Function that trains on a batch with a dropout seed, int32 [2], and returns the global batch's loss.
    """

    step: Callable[..., Any]

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""

    @property
    def temperature(self) -> float:
        """Current temperature of the loss."""

    def state(self) -> dict[str, Array]:
        """Returns everything that a checkpoint needs; the entries `result/...` are the result of training."""

    def load(self, state: dict[str, Array]) -> None:
        """Restores the result of `state()`."""


class TrainingTask(Protocol):
    """A model and the data to train it on; it is pickled and sent to the workers."""

    @property
    def label(self) -> str:
        """Label of progress and error messages, for example `training heads`."""

    @property
    def config(self) -> TrainConfig:
        """Batch size, workers and seed."""

    @property
    def epochs(self) -> int:
        """Number of epochs."""

    @property
    def images(self) -> int:
        """Number of training images."""

    def start(self, strategy: Any, steps: int) -> TrainingRun:
        """Returns the initial state, given the number of steps per epoch."""

    def batch(self, rows: Array, random: np.random.Generator, part: slice) -> tuple[Any, ...]:
        """Returns one worker's part of a global batch.

        Every worker must call this with a generator in the same state.

        Args:
          rows: Images of the global batch.
          part: This worker's part of the rows.
        """


@dataclass(frozen=True)
class TrainingResult:
    """Result of training.

    Attributes:
      weights: Trained weights by name, as the task defines them.
      history: For each epoch, `epoch` (from 1), the mean `loss`, the final `learning_rate` and `temperature`, and
        `seconds`.
    """

    weights: dict[str, Array]
    history: list[dict[str, float]]


def fit(task: TrainingTask, store: CheckpointStore, name: str, allocation: Allocation) -> TrainingResult:
    """Runs a training task; call it inside `ray_cluster`.

    Resumes a killed run of the same name. Lost workers are replaced, and training continues from the last checkpoint;
    an error that would occur again ends training at once.

    Args:
      store: Storage of checkpoints.
      name: Name of the run, derived from everything that determines its result.
      allocation: Resources of the `task.config.workers` workers.

    Raises:
      PermanentError: The loss is no longer finite, or a worker raised an error that another attempt would not change.
      JobError: Workers failed more than MAX_FAILURES times.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    from trainer.fit.ray_backend import TensorFlowBackend

    workers = task.config.workers
    if (cpus := ray.cluster_resources().get("CPU", 0)) < workers * allocation.cpus:
        # Ray waits indefinitely.
        logger.info(f"the Ray cluster has {cpus:g} CPUs, but train.workers is {workers}; waiting for more nodes")
    counter = ray.remote(num_cpus=0)(EpochCounter).remote()
    trainer = functools.partial(
        TensorflowTrainer,
        _worker,
        tensorflow_config=TensorFlowBackend(),
        train_loop_config={"task": [ray.put(task)], "threads": allocation.cpus, "counter": counter},
        scaling_config=ScalingConfig(
            num_workers=workers,
            resources_per_worker={"CPU": allocation.cpus},
            use_gpu=bool(allocation.gpus),
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name=name,
            storage_path=store.path,
            storage_filesystem=store.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=0),  # Ray would retry errors of every class
        ),
    )
    with _progress_bar(counter, task.label, task.epochs):
        result = _fit(trainer, task.label)
    if result.return_value:
        raise PermanentError(result.return_value)
    if result.checkpoint is None:
        raise JobError("training ended without a checkpoint; remove the cache folder of the workspace and try again")
    with result.checkpoint.as_directory() as directory:
        state = _read(Path(directory) / _CHECKPOINT)
    weights = {key.removeprefix("result/"): value for key, value in state.items() if key.startswith("result/")}
    history = [dict(zip(_HISTORY, row, strict=True)) for row in state["history"].tolist()]
    return TrainingResult(weights, [{**epoch, "epoch": int(epoch["epoch"])} for epoch in history])


def _fit(trainer: Callable[[], Any], label: str) -> Any:
    """Returns the result of Ray Train; after failures of workers that may pass, continues from the last checkpoint.

    Args:
      trainer: Function that returns a trainer.
      label: Label of the task.
    """
    from ray.train import WorkerGroupError

    for failures in itertools.count(1):
        try:
            return trainer().fit()
        except Exception as error:  # Ray wraps the errors of workers
            reason = f"{label} failed: {root_cause(error)}"
            if not failure_may_pass(error):
                raise PermanentError(reason) from error
            if failures > MAX_FAILURES or not isinstance(error, WorkerGroupError):
                raise JobError(reason) from error
            logger.info(f"{reason}; continuing from the last checkpoint (failure {failures} of {MAX_FAILURES})")
    raise AssertionError("unreachable: the loop returns or raises")


@contextlib.contextmanager
def _progress_bar(counter: Any, label: str, epochs: int) -> Iterator[None]:
    """Shows the finished epochs from a thread, because Ray Train's `fit` blocks until the end."""
    import ray

    ended = threading.Event()

    def follow(advance: Callable[[int], None]) -> None:
        shown, last = 0, False
        while not last:
            last = ended.wait(0.5)
            with contextlib.suppress(ray.exceptions.RayError):  # the counter's node may have been lost
                done = ray.get(counter.get.remote())
                advance(done - shown)
                shown = done

    with progress.track(label, epochs, "epoch", numbered=True) as advance:
        thread = threading.Thread(target=follow, args=(advance,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _worker(settings: dict[str, Any]) -> str | None:
    """Trains in a Ray Train worker; returns a message if training cannot succeed, for example if the loss diverges."""
    import ray
    import ray.train
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(settings["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(2)  # one of them may be waiting for other workers
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    task: TrainingTask = ray.get(settings["task"][0])
    rank, checkpoint = ray.train.get_context().get_world_rank(), ray.train.get_checkpoint()
    _, steps = batch_plan(task.config, task.images)
    run = task.start(strategy, steps)
    history: list[list[float]] = []
    if checkpoint:
        with checkpoint.as_directory() as directory:
            state = _read(Path(directory) / _CHECKPOINT)
        history = state.pop("history").tolist()
        run.load(state)

    try:
        for metrics in run_epochs(task, run, len(history), rank):
            history.append(metrics)
            done = len(history)
            if rank == 0:
                settings["counter"].set.remote(done)
            if done % math.ceil(task.epochs / CHECKPOINTS) and done < task.epochs:
                continue
            state = run.state()
            if not all(np.isfinite(value).all() for value in state.values() if value.dtype.kind == "f"):
                return f"weights are not finite after epoch {done} ({task.label}); lower the learning rate"
            with tempfile.TemporaryDirectory() as folder:
                saved = None
                if rank == 0:
                    np.savez(Path(folder) / _CHECKPOINT, history=np.array(history), **state)
                    saved = ray.train.Checkpoint.from_directory(folder)
                ray.train.report({"epoch": done, "loss": metrics[1]}, checkpoint=saved)
    except DivergedError as error:
        return str(error)  # every worker returns, so Ray keeps the last checkpoint
    return None


class DivergedError(PermanentError):
    """Raised when the loss is no longer finite."""


def run_epochs(task: TrainingTask, run: TrainingRun, done: int, rank: int) -> Iterator[list[float]]:
    """Trains one worker's part of all epochs after the first `done` ones.

    Args:
      run: State after `done` epochs.
      rank: Rank of this worker; all workers must run in step.

    Yields:
      After each epoch, its number (from 1), mean loss, learning rate, temperature and seconds.

    Raises:
      DivergedError: The loss is no longer finite.
    """
    config = task.config
    share, steps = batch_plan(config, task.images)
    for epoch in range(done, task.epochs):
        start, total = time.monotonic(), 0.0
        random = np.random.default_rng([config.seed, epoch])
        order = random.permutation(task.images)
        for step in range(steps):
            rows = order[step * share * config.workers :][: share * config.workers]
            batch = task.batch(rows, random, slice(rank * share, (rank + 1) * share))
            seed = np.array([config.seed, (epoch * steps + step) * config.workers + rank], np.int32)
            loss = float(run.step(*batch, seed))
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {step + 1} ({task.label}); lower the learning rate"
                )
            total += loss
        yield [epoch + 1, total / steps, run.learning_rate, run.temperature, time.monotonic() - start]


def _read(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
