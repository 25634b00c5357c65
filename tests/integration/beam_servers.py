"""Beam job servers and worker pools on localhost. Tests are skipped if a server cannot be obtained."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apache_beam
import grpc
import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions

from tests.integration import fetched
from tests.integration.ports import free_port

BOOT_MODULE = f"github.com/apache/beam/sdks/v2/python/container@v{apache_beam.__version__}"
"""Program that starts Python workers in Beam's container images."""
FLINK_RUNNERS = (
    (FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1], apache_beam.__version__),
    ("1.19", "2.62.0"),
)
"""Versions of Flink and of Beam's job server for it; the first one that Maven can fetch is used."""
START_SECONDS = 90

_BOOT_SCRIPT = '#!/bin/sh\nexec "$BEAM_BOOT" --semi_persist_dir="$BEAM_FOLDER" "$@"\n'
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>searchforge</groupId><artifactId>flink-job-server</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>org.apache.beam</groupId><artifactId>beam-runners-flink-{flink}</artifactId><version>{beam}</version>
  </dependency></dependencies>
</project>
"""
_OPEN_PACKAGES = (
    *("java.io", "java.lang", "java.lang.reflect", "java.math", "java.net", "java.nio", "java.text", "java.time"),
    *("java.util", "java.util.concurrent", "java.util.concurrent.atomic", "sun.nio.ch", "sun.util.calendar"),
)
"""Java packages that Flink serializes by reflection, which Java 17 denies unless they are opened."""


@dataclass(frozen=True)
class WorkerPool:
    """Address of a worker pool, and the Python interpreter of its workers' environment."""

    address: str
    python: Path


def boot_program() -> Path:
    """Returns Beam's boot program for Python workers."""
    return fetched.go_program(BOOT_MODULE)


def flink_class_path() -> str:
    """Returns the class path of Beam's Flink job server, which embeds a Flink cluster."""
    skipped: list[str] = []
    for flink, beam in FLINK_RUNNERS:
        try:
            return fetched.jars(f"flink-{flink}-beam-{beam}", _POM.format(flink=flink, beam=beam))
        except pytest.skip.Exception as reason:
            skipped.append(str(reason))
    pytest.skip("; ".join(skipped))


@contextmanager
def worker_pool(boot: Path, folder: Path) -> Iterator[WorkerPool]:
    """Runs a pool that starts workers like Beam's containers: boot installs the staged package, then starts Python.

    The workers' environment has every library of this one, but not this project.
    """
    environment = folder / "worker"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # The .pth files of folders named in a .pth file are not processed, which excludes editable installs.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    script = folder / "boot.sh"
    script.write_text(_BOOT_SCRIPT)
    script.chmod(0o700)
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "BEAM_BOOT": str(boot),
        "BEAM_FOLDER": str(folder),
        "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1",  # else boot writes to /opt
        "PIP_NO_DEPS": "1",  # as in infra/deploy/beam/Dockerfile
    }
    command = [sys.executable, str(Path(__file__).with_name("worker_pool.py")), str(script)]
    with (
        (folder / "pool.log").open("wb") as log,
        subprocess.Popen(
            command, env=variables, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin and process.stdout
        port = process.stdout.readline().strip()
        if not port:
            pytest.fail(f"the worker pool did not start: {(folder / 'pool.log').read_text()[-2000:]}")
        yield WorkerPool(f"localhost:{port}", environment / "bin" / "python")
        process.stdin.close()
        process.wait(60)


@contextmanager
def local_job_service(folder: Path) -> Iterator[str]:
    """Runs Beam's local job service; yields its address."""
    port = free_port()
    module = "apache_beam.runners.portability.local_job_service_main"
    command = [sys.executable, "-m", module, f"--port={port}", f"--staging_dir={folder / 'staging'}"]
    with _server(command, port, folder) as address:
        yield address


@contextmanager
def flink_job_server(class_path: str, folder: Path) -> Iterator[str]:
    """Runs Beam's Flink job server with an embedded Flink cluster; yields its address."""
    port = free_port()
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPEN_PACKAGES]
    ports = [f"--job-port={port}", "--artifact-port=0", "--expansion-port=0"]
    locations = ["--flink-master=[local]", "--job-host=localhost", f"--artifacts-dir={folder / 'staging'}"]
    program = ["-cp", class_path, "org.apache.beam.runners.flink.FlinkJobServerDriver"]
    with _server(["java", "-Xmx1g", *opened, *program, *ports, *locations], port, folder) as address:
        yield address


@contextmanager
def _server(command: Sequence[str], port: int, folder: Path) -> Iterator[str]:
    address, log = f"localhost:{port}", folder / "server.log"
    with log.open("wb") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        try:
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(START_SECONDS)
            yield address
        except grpc.FutureTimeoutError:
            pytest.fail(f"{command[0]} did not serve {address} within {START_SECONDS} s: {log.read_text()[-2000:]}")
        finally:
            process.kill()
