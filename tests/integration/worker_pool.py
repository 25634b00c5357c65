"""Runs Beam's worker pool on localhost: `python worker_pool.py BOOT` prints its port and ends with standard input.

It imports nothing from the project, which its workers must not find. Beam's own program listens on every interface.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker import worker_pool_main


def main(boot: str) -> None:
    """Serves until standard input ends; `boot` is the program that starts a worker."""
    pool = worker_pool_main.BeamFnExternalWorkerPoolServicer(use_process=True, container_executable=boot)
    server = grpc.server(ThreadPoolExecutor())
    port = server.add_insecure_port("127.0.0.1:0")
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None).wait()
    for process in list(pool._worker_processes.values()):
        worker_pool_main.kill_process_gracefully(process)


if __name__ == "__main__":
    main(sys.argv[1])
