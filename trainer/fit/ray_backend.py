"""Sets TF_CONFIG in Ray Train's workers without importing TensorFlow in the controller.

Ray's own TensorflowConfig does the same, but makes the controller process import TensorFlow.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from searchforge.proxy import bypass_proxy


@dataclass
class TensorFlowBackend(BackendConfig):
    """Configures a TensorFlow cluster: sets TF_CONFIG, with all workers' addresses, in every worker."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend

    def to_dict(self) -> dict[str, Any]:
        return {}


class _Backend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        addresses = worker_group.execute(_free_address)
        ray.get(
            [worker_group.execute_single_async(rank, _configure, addresses, rank) for rank in range(len(worker_group))]
        )


def _free_address() -> str:
    """Returns an unused host:port of this worker."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _configure(addresses: list[str], rank: int) -> None:
    bypass_proxy(*(address.rpartition(":")[0].strip("[]") for address in addresses))
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
