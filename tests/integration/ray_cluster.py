"""Runs a Ray cluster of two nodes with two CPUs each on localhost until standard input ends.

python -m tests.integration.ray_cluster FOLDER DASHBOARD_PORT, under `environment()`; prints the cluster's address.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

NODES = 2


def environment() -> dict[str, str]:
    """Returns the environment variables of the cluster and of its clients."""
    variables = {
        # Keeps Ray from replacing 127.0.0.1 with the machine's external address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Makes the project importable on the nodes, as if it were installed.
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    return {**{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}, **variables}


def main(folder: str, port: int) -> None:
    from ray.cluster_utils import Cluster

    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    shared = {
        "num_cpus": 2,
        "node_ip_address": "127.0.0.1",
        "temp_dir": folder,
        "dashboard_agent_listen_port": 0,  # any free port: another cluster may run on this machine
    }
    cluster = Cluster(initialize_head=True, head_node_args={**shared, **dashboard})
    for _ in range(NODES - 1):
        cluster.add_node(**shared)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
