"""Decisions about a Ray cluster: whether a failure may pass."""

from __future__ import annotations

import pytest
import tensorflow as tf
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train import WorkerGroupError

from searchforge.errors import UsageError
from trainer.ray_cluster import failure_may_pass


def _aborted() -> Exception:
    return tf.errors.AbortedError(None, None, "Collective ops is aborted")


def test_lost_workers_may_be_replaced_whatever_the_others_raised() -> None:
    assert failure_may_pass(WorkerGroupError("lost", {0: ValueError("no peer"), 1: RayActorError()}))
    assert failure_may_pass(OutOfMemoryError("a worker was killed"))


@pytest.mark.parametrize("error", [OSError("the disk is full"), MemoryError(), _aborted()])
def test_errors_of_storage_memory_and_communication_may_pass(error: Exception) -> None:
    assert failure_may_pass(WorkerGroupError("failed", {1: error}))


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unsupported operand"),
        UsageError("no such tower"),
        tf.errors.InvalidArgumentError(None, None, "incompatible shapes"),
    ],
)
def test_programming_errors_and_bad_input_of_one_worker_may_not_pass(error: Exception) -> None:
    assert not failure_may_pass(WorkerGroupError("failed", {0: _aborted(), 1: error}))
    assert not failure_may_pass(RayTaskError("map", "Traceback", error, pid=1, ip="127.0.0.1"))
