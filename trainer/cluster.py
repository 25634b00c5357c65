"""The Ray cluster that towers and training run on: a running one by its address, or a local one for this command."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from searchforge.config import TrainConfig
from searchforge.errors import JobError


@contextlib.contextmanager
def ray_cluster(config: TrainConfig) -> Iterator[None]:
    """Connects to Ray, and ends what it started. A connection that exists already is used and left open.

    A local cluster listens on 127.0.0.1 only and sends no usage statistics.

    Raises:
      JobError: the cluster at `config.ray_address` cannot be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray would otherwise ship the working folder of a `uv run` command to its workers.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray Train looks after its workers, and takes their checkpoints, this often (seconds).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    import ray

    if ray.is_initialized():
        yield
        return
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    variables = {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        if config.ray_address:
            ray.init(config.ray_address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                "local",
                # One for each worker, and one for Ray Train's own actor, however small the machine is.
                num_cpus=max(config.workers + 1, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": variables},
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = config.ray_address or "local"
        raise JobError(f"the Ray cluster ({where}) cannot be used: {error}; check train.ray_address") from error
    try:
        yield
    finally:
        ray.shutdown()


def threads_per_worker(config: TrainConfig) -> int:
    """Threads that each of the workers on one machine may use."""
    return max(1, (os.cpu_count() or 1) // config.workers)
