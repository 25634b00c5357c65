"""Cached programs and jars for the integration tests. Tests are skipped if one cannot be fetched or built."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cached import cached

FETCH_SECONDS = 900


def go_program(module: str) -> Path:
    """Builds a program from the Go module proxy; `module` is a package path with `@version`."""

    def make(folder: Path) -> None:
        go = shutil.which("go")
        if go is None:
            pytest.skip(f"Go is not installed, so {module} cannot be built")
        if failure := _failure([go, "install", module], GOBIN=str(folder)):
            pytest.skip(f"{module} cannot be built: {failure}")

    (program,) = cached(module.replace("/", "-"), module, make).iterdir()
    return program


def jar(artifact: str) -> Path:
    """Fetches a jar without its dependencies with Maven; `artifact` is group:name:version."""

    def make(folder: Path) -> None:
        options = [f"-DoutputDirectory={folder}", f"-Dartifact={artifact}", "dependency:copy"]
        if failure := _failure([*_maven(artifact), *options]):
            pytest.skip(f"{artifact} cannot be fetched: {failure}")

    (found,) = cached(artifact.partition(":")[2].replace(":", "-"), artifact, make).iterdir()
    return found


def jars(name: str, pom: str) -> str:
    """Fetches the runtime dependencies of a Maven project with Maven; returns their class path."""

    def make(folder: Path) -> None:
        (folder / "pom.xml").write_text(pom)
        options = ["-DincludeScope=runtime", f"-Dmdep.outputFile={folder / 'classpath'}", "dependency:build-classpath"]
        if failure := _failure([*_maven(name), "-f", str(folder / "pom.xml"), *options]):
            pytest.skip(f"{name} cannot be fetched: {failure}")

    while True:
        folder = cached(name, pom, make)
        class_path = (folder / "classpath").read_text()
        if all(Path(file).exists() for file in class_path.split(":")):
            return class_path
        shutil.rmtree(folder)  # the jars are in Maven's local repository, which has been emptied


def _maven(artifact: str) -> list[str]:
    maven = shutil.which("mvn")
    if maven is None or shutil.which("java") is None:
        pytest.skip(f"Java or Maven is not installed, so {artifact} cannot be fetched")
    return [maven, "-B", "-q", "-Dstyle.color=never"]


def _failure(command: Sequence[str], **variables: str) -> str:
    """Runs a command; returns the reason of a failure, or an empty string."""
    environment = {**os.environ, **variables}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
    )
    if not result.returncode:
        return ""
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return lines[0][-300:] if lines else f"exit code {result.returncode}"
