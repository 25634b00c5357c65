"""Decisions about a Ray cluster: how its resources are divided among workers, and whether a failure may pass."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import tensorflow as tf
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train import WorkerGroupError

from searchforge.errors import JobError, UsageError
from trainer.ray_cluster import Allocation, allocate, failure_may_pass, require_free_space


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [
        (2, [{"CPU": 8}], Allocation(2, cpus=4)),
        (3, [{"CPU": 4}, {"CPU": 4}], Allocation(3, cpus=2)),
        (2, [{"CPU": 2}, {"CPU": 2}], Allocation(2, cpus=2)),
        (2, [{"CPU": 64}, {"CPU": 4}], Allocation(2, cpus=32)),
        (4, [{"CPU": 2}], Allocation(4, cpus=1)),  # Ray waits for more nodes
        (2, [{}], Allocation(2, cpus=1)),  # a head node, which adds nodes on demand
        (2, [], Allocation(2, cpus=1)),
        (2, [{"CPU": 8, "GPU": 1}], Allocation(1, cpus=8, gpus=1)),
        (2, [{"CPU": 8, "GPU": 2}], Allocation(2, cpus=4, gpus=1)),
        (2, [{"CPU": 16, "GPU": 4}], Allocation(2, cpus=8, gpus=1, idle_gpus=2)),
        (4, [{"CPU": 16, "GPU": 4}, {"CPU": 64}], Allocation(4, cpus=4, gpus=1)),
        (8, [{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}], Allocation(3, cpus=4, gpus=1)),
    ],
)
def test_workers_get_all_cpus_of_the_nodes_that_have_a_place_for_them_and_a_gpu_each(
    workers: int, nodes: list[dict[str, float]], expected: Allocation
) -> None:
    assert allocate(workers, nodes) == expected


def test_cpus_that_other_jobs_have_reserved_are_left_to_them() -> None:
    assert allocate(2, [{"CPU": 8}], available_cpus=5) == Allocation(2, cpus=2)
    assert allocate(2, [{"CPU": 8, "GPU": 1}], available_cpus=0) == Allocation(1, cpus=1, gpus=1)


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        (Allocation(2, cpus=4), "training uses 2 workers with 4 CPUs and no GPU each"),
        (
            Allocation(1, cpus=8, gpus=1),
            "training uses 1 worker with 8 CPUs and 1 GPU; train.workers is 2, but every worker needs a GPU of its own",
        ),
        (
            Allocation(2, cpus=1, gpus=1, idle_gpus=2),
            "training uses 2 workers with 1 CPU and 1 GPU each; set train.workers to 4 to use all GPUs",
        ),
    ],
)
def test_the_log_says_what_is_used_and_how_to_use_the_rest(allocation: Allocation, message: str) -> None:
    assert allocation.describe(requested=2) == message


def _aborted() -> Exception:
    return tf.errors.AbortedError(None, None, "Collective ops is aborted")


def test_a_full_folder_for_temporary_files_is_reported_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    require_free_space()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    with pytest.raises(JobError, match=r"has 0 MB left, and Ray needs 100 MB for its files; free some space there"):
        require_free_space()


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
