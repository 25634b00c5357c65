"""The training loop under Ray Train on N workers, whatever it trains: epochs, checkpoints, recovery and history.

Every worker takes its part of each global batch; gradients and the loss are those of the whole batch. All random
choices follow from the seed and the step, so that a killed worker or run continues from the last checkpoint and ends
with the same weights.
"""

from __future__ import annotations

import contextlib
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
from searchforge.errors import JobError
from trainer.features.batches import batch_plan
from trainer.fit.checkpoints import CheckpointStore
from trainer.fit.epoch_counter import EpochCounter
from trainer.ray_cluster import gpus_per_worker, root_cause

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

CHECKPOINTS = 10
"""Checkpoints of a run: a killed one repeats at most this part of its epochs."""

MAX_FAILURES = 5
"""How often lost workers are replaced in one run."""

_CHECKPOINT = "checkpoint.npz"
_HISTORY = ("epoch", "loss", "learning_rate", "temperature", "seconds")


class Run(Protocol):
    """The state of training in a worker.

    Attributes:
      step: trains on a batch and a dropout seed, int32 [2]; returns the loss over the global batch.
    """

    step: Callable[..., Any]

    @property
    def learning_rate(self) -> float:
        """Of the last step."""

    @property
    def temperature(self) -> float:
        """Of the loss, now."""

    def state(self) -> dict[str, Array]:
        """Returns everything that the rest of the run depends on; `result/...` is what training gives."""

    def load(self, state: dict[str, Array]) -> None:
        """Continues from what `state()` returned."""


class Task(Protocol):
    """What is trained, and on what; it travels to the workers."""

    @property
    def label(self) -> str:
        """Label of progress and error messages, such as "training heads"."""

    @property
    def config(self) -> TrainConfig:
        """Batch size, workers and seed."""

    @property
    def epochs(self) -> int:
        """To be trained."""

    @property
    def images(self) -> int:
        """Number of training images."""

    def start(self, strategy: Any, steps: int) -> Run:
        """Returns the state before the first of `steps` steps an epoch."""

    def batch(self, rows: Array, random: np.random.Generator, part: slice) -> tuple[Any, ...]:
        """Returns one worker's part of a global batch.

        Every worker calls this with a generator in the same state.

        Args:
          rows: images of the global batch.
          part: this worker's share of them.
        """


@dataclass(frozen=True)
class TrainingResult:
    """What training gives.

    Attributes:
      weights: by name; of the task.
      history: of each epoch, `epoch` (from 1), mean `loss`, `learning_rate` and `temperature` at its end, and
        `seconds`.
    """

    weights: dict[str, Array]
    history: list[dict[str, float]]


def fit(task: Task, store: CheckpointStore, name: str, threads: int) -> TrainingResult:
    """Trains; call it inside `cluster.ray_cluster`. A run of the same name continues where it was killed.

    A worker that is lost is replaced, and training goes on from the last checkpoint.

    Args:
      store: where Ray Train keeps checkpoints.
      name: of the run; derived from everything that the result depends on.
      threads: of each worker.

    Raises:
      JobError: the loss is not a number any more, or workers failed again and again.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    from trainer.fit.ray_backend import TensorFlowBackend

    workers = task.config.workers
    if (cpus := ray.cluster_resources().get("CPU", 0)) < workers:
        # Ray would wait for ever.
        logger.info(f"the Ray cluster has {cpus:g} CPUs, but train.workers is {workers}: it waits for more nodes")
    counter = ray.remote(num_cpus=0)(EpochCounter).remote()
    trainer = TensorflowTrainer(
        _worker,
        tensorflow_config=TensorFlowBackend(),
        train_loop_config={"task": [ray.put(task)], "threads": threads, "counter": counter},
        scaling_config=ScalingConfig(
            num_workers=workers,
            resources_per_worker={"CPU": 1},
            use_gpu=bool(gpus_per_worker(workers)),
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name=name,
            storage_path=store.path,
            storage_filesystem=store.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    try:
        with _shown_progress(counter, task.label, task.epochs):
            result = trainer.fit()
    except Exception as error:  # Ray wraps what a worker raised in errors of its own
        raise JobError(f"training failed ({task.label}): {root_cause(error)}") from error
    if result.return_value:
        raise JobError(result.return_value)
    if result.checkpoint is None:
        raise JobError("training ended without a checkpoint; remove the cache folder of the workspace and try again")
    with result.checkpoint.as_directory() as directory:
        state = _read(Path(directory) / _CHECKPOINT)
    weights = {key.removeprefix("result/"): value for key, value in state.items() if key.startswith("result/")}
    history = [dict(zip(_HISTORY, row, strict=True)) for row in state["history"].tolist()]
    return TrainingResult(weights, [{**epoch, "epoch": int(epoch["epoch"])} for epoch in history])


@contextlib.contextmanager
def _shown_progress(counter: Any, label: str, epochs: int) -> Iterator[None]:
    """Shows what the workers count, from a thread: Ray Train's own call returns only at the end."""
    import ray

    ended = threading.Event()

    def follow(advance: Callable[[int], None]) -> None:
        shown, last = 0, False
        while not last:
            last = ended.wait(0.5)
            with contextlib.suppress(ray.exceptions.RayError):  # the counter's node may be lost
                done = ray.get(counter.get.remote())
                advance(done - shown)
                shown = done

    with progress.track(label, epochs, unit="epoch") as advance:
        thread = threading.Thread(target=follow, args=(advance,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _worker(settings: dict[str, Any]) -> str | None:
    """Runs in every Ray Train worker; returns what makes going on useless, such as a loss that is not a number."""
    import ray
    import ray.train
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(settings["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(2)  # one may wait for the other workers
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    task: Task = ray.get(settings["task"][0])
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
        for figures in run_epochs(task, run, len(history), rank):
            history.append(figures)
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
                ray.train.report({"epoch": done, "loss": figures[1]}, checkpoint=saved)
    except DivergedError as error:
        return str(error)  # the same for all workers; an exception would have Ray try again, to the same end
    return None


class DivergedError(JobError):
    """The loss is not a number any more."""


def run_epochs(task: Task, run: Run, done: int, rank: int) -> Iterator[list[float]]:
    """Trains one worker's share of the epochs after the first `done` ones.

    Args:
      run: the state after `done` epochs.
      rank: of this worker; the others must be at the same step.

    Yields:
      After each epoch its number (from 1), mean loss, learning rate, temperature and seconds.

    Raises:
      DivergedError: the loss is not a number any more.
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
