"""Connects to a running Ray cluster, or starts a local one for the duration of the command."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchforge.config import TrainConfig
from searchforge.errors import JobError, SearchforgeError, may_pass
from searchforge.native_output import discarded_stderr
from searchforge.processes.fork_server import python_path
from searchforge.proxy import bypass_proxy

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10
"""Timeout for connecting to a cluster."""

MIN_FREE_BYTES = 100_000_000
"""Free space that a local cluster needs in the folder for temporary files, for logs and sockets."""

ATTEMPTS = 3
"""Maximum number of attempts to start a local cluster."""

_OWN_ERROR = re.compile(r"^searchforge\.errors\.\w+: ")


@contextlib.contextmanager
def ray_cluster(config: TrainConfig, gpus: int | None = None) -> Iterator[None]:
    """Connects to Ray and disconnects on exit. An existing connection is reused and left open.

    Uses the cluster at `config.ray_address`, else the one that runs this command as a job (`ray job submit` sets
    RAY_ADDRESS), else a local one that listens only on 127.0.0.1 and sends no usage statistics.

    Args:
      gpus: Number of GPUs of a local cluster; by default those that TensorFlow can use, where Ray itself would count
        all of the machine's.

    Raises:
      JobError: The cluster is unreachable or cannot be started, or the disk of a local one is full.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Keep Ray from shipping the working directory of a `uv run` command to its workers.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Interval in seconds at which Ray Train polls its workers and collects their checkpoints.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Allow a busy machine more than Ray's default of 30 seconds to start.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
    # Silence Ray's native log messages; errors that concern the user are raised as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = cluster_address(config)
    bypass_proxy(*([_host(address)] if address else []))
    if not address:
        # Keep Ray from replacing 127.0.0.1 by the machine's external address; the variable is meant for other systems.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # A local machine is not preempted, so no process needs to watch for it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Run workers at this command's priority; Ray's default niceness of 15 starves them on a busy machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        _ensure_token()
    elif os.environ.get("RAY_AUTH_TOKEN_PATH") or (_token_folder() / "auth_token").exists():
        # Like Ray's own commands: a cluster that they started requires the token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        yield
        return
    if not address:
        require_free_space()
    handlers = _signal_handlers()
    variables = {"PYTHONPATH": python_path(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            _require_listening(address)
        else:
            # Declare one CPU per worker and one for Ray Train's controller, even on a smaller machine.
            cpus = max(config.workers + 1, os.cpu_count() or 1)
            gpus = _usable_gpus() if gpus is None else gpus
            options |= {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False}
            options |= {"_node_ip_address": "127.0.0.1"}
            options |= {"runtime_env": {"env_vars": variables}}
        _start(address, options)
        bypass_proxy(*(node["NodeManagerAddress"] for node in ray.nodes()))
    except Exception as error:  # Ray raises many types, including a bare Exception if a node starts too slowly
        reason = " ".join(str(error).split())
        raise JobError(
            f"the Ray cluster ({address or 'local'}) cannot be used: {reason}; check train.ray_address and RAY_ADDRESS"
        ) from error
    _restore_handlers(handlers)
    try:
        yield
    finally:
        ray.shutdown()
        _restore_handlers(handlers)


def require_free_space() -> None:
    """Checks that the folder for temporary files has room, without which Ray's processes fail and restart forever.

    Raises:
      JobError: It has not.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise JobError(
            f"{folder} has {free / 1e6:.0f} MB left, and Ray needs {MIN_FREE_BYTES / 1e6:.0f} MB for its files; free "
            "some space there, or set TMPDIR to another folder"
        )


def _usable_gpus() -> int:
    """Returns the number of GPUs that TensorFlow can use in this process."""
    import tensorflow

    return len(tensorflow.config.list_physical_devices("GPU"))


def cluster_address(config: TrainConfig) -> str | None:
    """Returns the address of the running cluster to use, or None to start a local one."""
    return config.ray_address or os.environ.get("RAY_ADDRESS") or None


def _ensure_token() -> None:
    """Sets a token for a local cluster if Ray has none and cannot save one, because no home folder is writable."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    folder = _token_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder / "auth_token", os.R_OK) and not os.access(folder, os.W_OK | os.X_OK):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _token_folder() -> Path:
    """Returns the folder in which Ray saves its token; it does not exist for a user without a home folder."""
    return Path(os.path.expanduser("~")) / ".ray"  # noqa: PTH111 (Path.home raises an error without a home folder)


def _start(address: str | None, options: dict[str, Any]) -> None:
    """Connects to a cluster or starts a local one, retrying if the start times out.

    On a busy machine Ray gives up when its agent does not start within 15 seconds, which is not configurable
    (https://github.com/ray-project/ray/issues/65983). A retry benefits from the agent's files being cached.
    """
    import ray

    for attempt in range(1, ATTEMPTS + 1):
        try:
            with discarded_stderr():
                ray.init(address or "local", **options)
            return
        except Exception as error:
            ray.shutdown()
            if address or attempt == ATTEMPTS or "timed out" not in str(error):
                raise
            logger.info("Ray did not start in time, perhaps because the machine is busy; retrying")


def _signal_handlers() -> dict[signal.Signals, Any]:
    """Returns the command's own SIGTERM and SIGINT handlers, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    return {
        number: handler
        for number, handler in handlers.items()
        if callable(handler) and handler != signal.default_int_handler
    }


def _restore_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _require_listening(address: str) -> None:
    """Raises OSError if nothing listens at host:port or ray://host:port; Ray itself would retry for minutes."""
    port = address.rpartition(":")[2]
    if port != address and port.isdigit():
        socket.create_connection((_host(address), int(port)), timeout=CONNECT_SECONDS).close()


def _host(address: str) -> str:
    """Returns the host of host:port or ray://host:port."""
    return address.removeprefix("ray://").rpartition(":")[0].strip("[]")


@dataclass(frozen=True)
class Allocation:
    """Workers and the resources that Ray reserves for them.

    Attributes:
      workers: Number of workers.
      cpus: Number of CPUs, and of threads, per worker.
      gpus: Number of GPUs per worker, 0 or 1.
      idle_gpus: Number of GPUs of the cluster that no worker uses.
    """

    workers: int
    cpus: int = 1
    gpus: int = 0
    idle_gpus: int = 0

    def describe(self, requested: int) -> str:
        """Returns a sentence on the resources that are used, and why.

        Args:
          requested: Number of workers in the configuration.
        """
        each = " each" if self.workers > 1 else ""
        text = (
            f"training uses {self.workers} worker{'s' if self.workers > 1 else ''} with {self.cpus} "
            f"CPU{'s' if self.cpus > 1 else ''} and {self.gpus or 'no'} GPU{each}"
        )
        if self.workers < requested:
            text += f"; train.workers is {requested}, but every worker needs a GPU of its own"
        if self.idle_gpus:
            text += f"; set train.workers to {self.workers + self.idle_gpus} to use all GPUs"
        return text


def allocate(workers: int, nodes: Sequence[Mapping[str, float]], available_cpus: float = math.inf) -> Allocation:
    """Divides a cluster's resources among workers, or among as many as it has GPUs if these are fewer.

    Processes do not share a GPU: NCCL, which adds up their gradients, requires one GPU for each of them.

    Args:
      workers: Maximum number of workers.
      nodes: Total resources of each node, by Ray's names `CPU` and `GPU`.
      available_cpus: Number of CPUs of the cluster that no other job has reserved.
    """
    places = [int(min(node.get("CPU", 0), node.get("GPU", 0))) for node in nodes]
    gpus = sum(places)
    if gpus:
        workers = min(workers, gpus)
    else:
        places = [int(node.get("CPU", 0)) for node in nodes]

    def fits(cpus: int) -> bool:
        spaces = sum(min(place, int(node.get("CPU", 0) // cpus)) for place, node in zip(places, nodes, strict=True))
        return spaces >= workers and workers * cpus <= available_cpus

    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    cpus = next(filter(fits, range(most, 1, -1)), 1)
    return Allocation(workers, cpus, min(gpus, 1), max(0, gpus - workers))


def allocate_in_cluster(workers: int) -> Allocation:
    """Divides the connected cluster among workers; see `allocate`. Call it inside `ray_cluster`."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return allocate(workers, nodes, ray.available_resources().get("CPU", 0))


def failure_may_pass(error: BaseException) -> bool:
    """Returns whether another attempt may succeed after an error of Ray.

    Lost workers may be replaced. Errors that the workers raised decide otherwise; see searchforge.errors.may_pass.
    """
    import ray
    from tensorflow import errors as tensorflow_errors

    permanent = tensorflow_errors.InvalidArgumentError, tensorflow_errors.UnimplementedError
    causes = _causes(error)
    if any(isinstance(cause, ray.exceptions.RayActorError) for cause in causes):
        return True  # whatever the other workers raised after one of them was lost
    return all(may_pass(cause) and not isinstance(cause, permanent) for cause in causes)


def root_cause(error: BaseException) -> str:
    """Returns a one-line message of the error that a worker raised, without Ray's wrapping."""
    # When one worker fails, the others fail with consequential errors.
    causes = _causes(error)
    inner = next((cause for cause in causes if isinstance(cause, SearchforgeError)), causes[0])
    text = str(inner)
    if "Traceback" in text or "ray::" in text:
        # Ray passes on chained tracebacks as text. Each ends with its error; the last one may be Ray's own.
        parts = text.split("\nThe above exception was the direct cause of the following exception:\n")
        own = len(parts) > 1 and "UserCodeException" in parts[-1]
        text = parts[-2 if own else -1].strip().splitlines()[-1]
    return " ".join(_OWN_ERROR.sub("", text).split()) or type(inner).__name__


def _causes(error: BaseException) -> list[BaseException]:
    """Returns the error that each failed worker raised, or the one of Ray itself, without Ray's wrapping."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return [_innermost(failure) for failure in failures.values()] or [_innermost(error)]


def _innermost(error: BaseException) -> BaseException:
    wrapped = ("cause", "health_check_failure", "controller_failure", "__cause__")
    inner = next(filter(None, (getattr(error, name, None) for name in wrapped)), None)
    # Ray Data's UserCodeException carries no message.
    if not isinstance(inner, BaseException) or type(inner).__name__ == "UserCodeException":
        return error
    return _innermost(inner)
