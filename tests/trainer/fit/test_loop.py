"""Tests that the training loop resumes exactly, and stops when the loss diverges."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import tensorflow as tf

from searchforge.config import TrainConfig
from searchforge.errors import JobError, PermanentError
from trainer.features.batches import TrainingSet, draw_batch
from trainer.fit.checkpoints import CheckpointStore
from trainer.fit.head_training import HeadRun, HeadTask
from trainer.fit.loop import fit, run_epochs
from trainer.ray_cluster import Allocation

CONFIG = TrainConfig(epochs=10, batch_size=8, dim=16, ensemble_size=2, workers=1)


def random_set(images: int) -> TrainingSet:
    """Returns random features with one to three captions per image."""
    random = np.random.default_rng(0)
    return TrainingSet(
        images=random.normal(size=(1, images, 5)).astype(np.float32),
        texts=random.normal(size=(3 * images, 7)).astype(np.float32),
        captions=np.arange(3 * images, dtype=np.int32).reshape(images, 3),
        caption_counts=random.integers(1, 4, images).astype(np.int32),
    )


class DivergesLater(HeadTask):
    """A task whose batches are NaN after 7 steps in one process."""

    @functools.cached_property
    def calls(self) -> Iterator[int]:
        return itertools.count()

    def batch(self, rows: Any, random: np.random.Generator, part: slice) -> tuple[Any, ...]:
        images, *others = super().batch(rows, random, part)
        return images * (np.nan if next(self.calls) >= 7 else 1.0), *others


@dataclass(frozen=True, kw_only=True)
class FailsLater(HeadTask):
    """A task whose 15th batch in one process raises an error; `attempts` is a file with a line for each process."""

    error: Exception
    attempts: Path

    @functools.cached_property
    def calls(self) -> Iterator[int]:
        with self.attempts.open("a") as file:
            file.write("started\n")
        return itertools.count()

    def batch(self, rows: Any, random: np.random.Generator, part: slice) -> tuple[Any, ...]:
        if next(self.calls) == 14:
            raise self.error
        return super().batch(rows, random, part)


class DescribesItsWorker(HeadTask):
    """A task whose error has the CPUs and GPUs that Ray reserved for the worker, and TensorFlow's threads."""

    def batch(self, rows: Any, random: np.random.Generator, part: slice) -> tuple[Any, ...]:
        reserved = ray.get_runtime_context().get_assigned_resources()
        threads = tf.config.threading.get_intra_op_parallelism_threads()
        raise PermanentError(f"{reserved.get('CPU', 0):g} CPUs, {reserved.get('GPU', 0):g} GPUs, {threads} threads")


def test_a_resumed_run_equals_an_uninterrupted_one() -> None:
    data = random_set(8)

    def new_run() -> HeadRun:
        return HeadRun(CONFIG, data, tf.distribute.OneDeviceStrategy("cpu:0"), steps=4)

    def steps(run: HeadRun, numbers: range) -> None:
        for number in numbers:
            batch = draw_batch(CONFIG, data, np.arange(8), np.random.default_rng(number), slice(0, 8))
            run.step(*batch, np.array([0, number], np.int32))

    whole, resumed = new_run(), new_run()
    steps(whole, range(2))
    resumed.load(whole.state())
    for run in (whole, resumed):
        steps(run, range(2, 4))
    expected, actual = whole.state(), resumed.state()
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_a_diverging_loss_stops_training_after_the_last_good_epoch() -> None:
    diverging = DivergesLater(CONFIG, random_set(16))  # 2 steps per epoch
    epochs = run_epochs(diverging, diverging.start(tf.distribute.OneDeviceStrategy("cpu:0"), steps=2), done=0, rank=0)
    assert [metrics[0] for metrics in itertools.islice(epochs, 3)] == [1, 2, 3]
    with pytest.raises(JobError, match=r"the loss is nan in epoch 4, step 2 \(training heads\)"):
        next(epochs)


@pytest.mark.proof
def test_a_diverging_loss_stops_training_and_keeps_the_last_good_checkpoint(ray_local: None, tmp_path: Path) -> None:
    store, data = CheckpointStore(str(tmp_path)), random_set(16)  # 2 steps per epoch
    # A retry from the checkpoint would get beyond this step.
    with pytest.raises(JobError, match=r"the loss is nan in epoch 4, step 2 \(training heads\)"):
        fit(DivergesLater(CONFIG, data), store, "run", Allocation(workers=1))
    (checkpoint,) = tmp_path.rglob("checkpoint.npz")
    kept = np.load(checkpoint)["history"].tolist()
    trained = fit(HeadTask(CONFIG, data), store, "run", Allocation(workers=1))
    assert len(kept) == 3 and [list(epoch.values()) for epoch in trained.history[:3]] == kept
    uninterrupted = HeadTask(CONFIG, data)
    run = uninterrupted.start(tf.distribute.OneDeviceStrategy("cpu:0"), steps=2)
    losses = [metrics[1] for metrics in run_epochs(uninterrupted, run, done=0, rank=0)]
    state = run.state()
    assert trained.weights.keys() == {name.removeprefix("result/") for name in state if name.startswith("result/")}
    for name, value in trained.weights.items():
        np.testing.assert_array_equal(state[f"result/{name}"], value, err_msg=name)
    assert [epoch["epoch"] for epoch in trained.history] == list(range(1, 11))
    assert [epoch["loss"] for epoch in trained.history] == losses
    assert trained.history[0]["learning_rate"] > trained.history[-1]["learning_rate"] >= 0
    assert set(trained.history[0]) == {"epoch", "loss", "learning_rate", "temperature", "seconds"}


@pytest.mark.proof
@pytest.mark.parametrize(
    ("error", "attempts"), [(TypeError("a fault of the code"), 1), (OSError("the disk is full"), 2)]
)
def test_only_failures_that_may_pass_are_retried_from_the_last_checkpoint(
    ray_local: None, tmp_path: Path, error: Exception, attempts: int
) -> None:
    """The first attempt completes 7 of the 10 epochs."""
    log = tmp_path / "attempts"
    task = FailsLater(CONFIG, random_set(16), error=error, attempts=log)  # 2 steps per epoch
    store = CheckpointStore(str(tmp_path))
    if isinstance(error, TypeError):
        with pytest.raises(PermanentError, match="training heads failed: a fault of the code"):
            fit(task, store, "run", Allocation(workers=1))
    else:
        assert len(fit(task, store, "run", Allocation(workers=1)).history) == CONFIG.epochs
    assert len(log.read_text().splitlines()) == attempts


@pytest.mark.proof
def test_a_worker_reserves_a_gpu_and_the_cpus_whose_threads_it_uses(ray_local: None, tmp_path: Path) -> None:
    task, store = DescribesItsWorker(CONFIG, random_set(16)), CheckpointStore(str(tmp_path))
    with pytest.raises(PermanentError, match="2 CPUs, 1 GPUs, 2 threads"):
        fit(task, store, "run", Allocation(workers=1, cpus=2, gpus=1))
