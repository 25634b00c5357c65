"""The Ray cluster that towers and training run on: a running one by its address, or a local one for this command."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from searchforge.config import TrainConfig
from searchforge.console import progress
from searchforge.console.options import stderr_closed
from searchforge.errors import JobError, SearchforgeError
from searchforge.processes.fork_server import python_path

CONNECT_SECONDS = 10
"""How long a cluster may take to accept a connection."""

ATTEMPTS = 3
"""How many times the start of a local cluster is tried."""

_OWN_ERROR = re.compile(r"^searchforge\.errors\.\w+: ")


@contextlib.contextmanager
def ray_cluster(config: TrainConfig) -> Iterator[None]:
    """Connects to Ray, and ends what it started. A connection that exists already is used and left open.

    The cluster is that at `config.ray_address`, else that which runs this command as a job (`ray job submit` sets
    RAY_ADDRESS), else a local one, which listens on 127.0.0.1 only and sends no usage statistics.

    Raises:
      JobError: the cluster cannot be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray would otherwise ship the working folder of a `uv run` command to its workers.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray Train looks after its workers, and takes their checkpoints, this often (seconds).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A busy machine may take longer than Ray's half a minute to start it (seconds).
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
    # Notices of Ray's native code about itself; what concerns the user arrives as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = cluster_address(config)
    if not address:
        # Without this, which Ray means for other systems, 127.0.0.1 would become the machine's outward address.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Nobody takes this machine away with notice, so no process has to watch for that.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Run workers at this command's priority: at Ray's default, 15 lower, they starve on a busy machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
    elif os.environ.get("RAY_AUTH_TOKEN_PATH") or (Path.home() / ".ray" / "auth_token").exists():
        # As Ray's own commands do; the cluster that they started will want it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        yield
        return
    handlers = _own_handlers()
    variables = {"PYTHONPATH": python_path(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            _require_listening(address)
        else:
            # One CPU for each worker, and one for Ray Train's own actor, however small the machine is.
            cpus = max(config.workers + 1, os.cpu_count() or 1)
            options |= {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            options |= {"runtime_env": {"env_vars": variables}}
        _start(address, options)
    except Exception as error:  # of many kinds, such as a bare Exception where a node takes too long to start
        reason = " ".join(str(error).split())
        raise JobError(
            f"the Ray cluster ({address or 'local'}) cannot be used: {reason}; check train.ray_address and RAY_ADDRESS"
        ) from error
    _restore(handlers)
    try:
        yield
    finally:
        ray.shutdown()
        _restore(handlers)


def cluster_address(config: TrainConfig) -> str | None:
    """Returns the address of a running cluster; None where a local one is started."""
    return config.ray_address or os.environ.get("RAY_ADDRESS") or None


def _start(address: str | None, options: dict[str, Any]) -> None:
    """Connects to a cluster, or starts a local one, trying again if that takes too long.

    On a busy machine Ray gives up when its agent has not started within 15 seconds, which no setting changes
    (https://github.com/ray-project/ray/issues/65983). The next attempt finds the agent's files in memory.
    """
    import ray

    for attempt in range(1, ATTEMPTS + 1):
        try:
            with stderr_closed():
                ray.init(address or "local", **options)
            return
        except Exception as error:
            ray.shutdown()
            if address or attempt == ATTEMPTS or "timed out" not in str(error):
                raise
            progress.say("Ray did not start in time, as happens on a busy machine; trying again")


def _own_handlers() -> dict[signal.Signals, Any]:
    """Returns the handlers that the command itself set for the signals that end it; Ray replaces them by its own."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    return {n: handler for n, handler in found.items() if callable(handler) and handler != signal.default_int_handler}


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _require_listening(address: str) -> None:
    """Raises OSError where nobody listens at host:port or ray://host:port: Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def threads_per_worker(workers: int) -> int:
    """Threads that each of the workers may use, spread evenly over the nodes; call it inside `ray_cluster`."""
    import ray

    cpus = [cpus for node in ray.nodes() if node["Alive"] and (cpus := node["Resources"].get("CPU", 0))]
    return max(1, int(min(cpus, default=1)) // math.ceil(workers / max(1, len(cpus))))


def gpus_per_worker(workers: int) -> int:
    """1 where the cluster has a GPU for every worker, else 0; call it inside `ray_cluster`."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0) >= workers)


def root_cause(error: BaseException) -> str:
    """Returns what went wrong in a worker, in one line, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        # Where one worker stops, the others fail with what follows from that.
        found = [_innermost(failure) for failure in failures.values()]
        inner = next((e for e in found if isinstance(e, SearchforgeError)), found[0])
    else:
        inner = _innermost(error)
    text = str(inner)
    if "Traceback" in text or "ray::" in text:
        # What Ray gives as text: tracebacks, each with its error in the last line; Ray's own is the last of them.
        parts = text.split("\nThe above exception was the direct cause of the following exception:\n")
        own = len(parts) > 1 and "UserCodeException" in parts[-1]
        text = parts[-2 if own else -1].strip().splitlines()[-1]
    return " ".join(_OWN_ERROR.sub("", text).split()) or type(inner).__name__


def _innermost(error: BaseException) -> BaseException:
    inner = getattr(error, "cause", None) or error.__cause__
    if not isinstance(inner, BaseException) or type(inner).__name__ == "UserCodeException":  # Ray Data's, and empty
        return error
    return _innermost(inner)
