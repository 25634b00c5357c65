"""Job servers and worker processes for Beam jobs, on localhost; where one cannot be had, the test is skipped.

As a program it is a worker pool: python -m tests.integration.beam_servers BOOT prints its port; it ends when its
standard input does.
"""

from __future__ import annotations

import os
import shutil
import site
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apache_beam
import grpc
import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker import worker_pool_main

BOOT_MODULE = f"github.com/apache/beam/sdks/v2/python/container@v{apache_beam.__version__}"
"""The program that starts Python workers in Beam's container images."""
FLINK_RUNNERS = (
    (FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1], apache_beam.__version__),
    ("1.19", "2.62.0"),
)
"""Versions of Flink and of Beam's job server for it: the first that Maven can fetch is used."""
FETCH_SECONDS = 900
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
"""Flink serializes their classes by reflection, which Java 17 allows no longer."""


@dataclass(frozen=True)
class WorkerPool:
    """Address of a pool, and the Python of the environment in which its workers run."""

    address: str
    python: Path


def cache() -> Path:
    """Folder of what is fetched or built for tests, kept between runs."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "searchforge-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_boot() -> Path:
    """Builds Beam's own boot program for Python workers from the Go module proxy, or finds it built."""
    return build_go_program(BOOT_MODULE, "container", f"boot-{apache_beam.__version__}")


def build_go_program(module: str, binary: str, name: str) -> Path:
    """Builds a program from the Go module proxy, or finds it built.

    Args:
      module: package path with `@version`.
      binary: name that Go gives the program.
      name: under which it is kept, with its version.
    """
    program = cache() / name
    if not program.exists():
        go = shutil.which("go")
        if go is None:
            pytest.skip(f"Go is not installed, so {name} cannot be built")
        folder = cache() / "go"
        if failure := _failure([go, "install", module], GOBIN=str(folder)):
            pytest.skip(f"{name} cannot be built: {failure}")
        (folder / binary).replace(program)
    return program


def fetch_jar(artifact: str) -> Path:
    """Fetches a jar, without what it depends on, with Maven; `artifact` is group:name:version."""
    _, name, version = artifact.split(":")
    jar = cache() / f"{name}-{version}.jar"
    if not jar.exists():
        maven = shutil.which("mvn")
        if maven is None or shutil.which("java") is None:
            pytest.skip(f"Java or Maven is not installed, so {artifact} cannot be fetched")
        options = ["-B", "-q", "-Dstyle.color=never", "-Dmdep.stripVersion=false", f"-DoutputDirectory={cache()}"]
        if failure := _failure([maven, *options, "dependency:copy", f"-Dartifact={artifact}"]):
            pytest.skip(f"{artifact} cannot be fetched: {failure}")
    return jar


def fetch_flink_job_server() -> str:
    """Fetches Beam's Flink job server, which holds a Flink cluster of its own, with Maven; returns its class path."""
    maven = shutil.which("mvn")
    if maven is None or shutil.which("java") is None:
        pytest.skip("Java or Maven is not installed, so there is no Flink job server")
    failures = []
    for flink, beam in FLINK_RUNNERS:
        folder = cache() / f"flink-{flink}-beam-{beam}"
        folder.mkdir(exist_ok=True)
        found = folder / "classpath"
        if found.exists() and all(Path(jar).exists() for jar in found.read_text().split(":")):
            return found.read_text()
        (folder / "pom.xml").write_text(_POM.format(flink=flink, beam=beam))
        options = ["-B", "-q", "-Dstyle.color=never", "-DincludeScope=runtime", f"-Dmdep.outputFile={found}"]
        failure = _failure([maven, "-f", str(folder / "pom.xml"), *options, "dependency:build-classpath"])
        if not failure:
            return found.read_text()
        failures.append(f"beam-runners-flink-{flink}:{beam}: {failure}")
    pytest.skip(f"Maven cannot fetch a Flink job server: {'; '.join(failures)}")


@contextmanager
def worker_pool(boot: Path, folder: Path) -> Iterator[WorkerPool]:
    """A pool that starts workers as Beam's containers do: boot installs the staged package, then starts Python.

    Their environment has every library of this one, but not this project.
    """
    environment = folder / "worker"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Folders named in a .pth file add their modules, but not their own .pth files: editable installs stay out.
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
        "PIP_NO_DEPS": "1",  # as in infra/beam/Dockerfile
    }
    command = [sys.executable, str(Path(__file__).resolve()), str(script)]
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
    """The address of Beam's own job service."""
    port = _free_port()
    module = "apache_beam.runners.portability.local_job_service_main"
    command = [sys.executable, "-m", module, f"--port={port}", f"--staging_dir={folder / 'staging'}"]
    with _server(command, port, folder) as address:
        yield address


@contextmanager
def flink_job_server(class_path: str, folder: Path) -> Iterator[str]:
    """The address of Beam's Flink job server with a Flink cluster inside."""
    port = _free_port()
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPEN_PACKAGES]
    ports = [f"--job-port={port}", "--artifact-port=0", "--expansion-port=0"]
    places = ["--flink-master=[local]", "--job-host=localhost", f"--artifacts-dir={folder / 'staging'}"]
    program = ["-cp", class_path, "org.apache.beam.runners.flink.FlinkJobServerDriver"]
    with _server(["java", "-Xmx1g", *opened, *program, *ports, *places], port, folder) as address:
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


def _failure(command: Sequence[str], **variables: str) -> str:
    """Runs a command; returns why it failed, or nothing."""
    environment = {**os.environ, **variables}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
    )
    if not result.returncode:
        return ""
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return lines[0][-300:] if lines else f"exit code {result.returncode}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(boot: str) -> None:
    """Beam's worker pool; its own program would listen on every interface."""
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
