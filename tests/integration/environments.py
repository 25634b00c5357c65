"""Cached Python environments, installed by uv, for tools and servers that conflict with the project's environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cached import cached, source

ROOT = Path(__file__).resolve().parents[2]
INSTALL_SECONDS = 900


def environment(name: str, *arguments: str, locked: tuple[Path, ...] = ()) -> Path:
    """Returns the Python interpreter of an environment; skips the test if it cannot be installed.

    Args:
      arguments: Packages to install.
      locked: Requirements files with hashes to install, without resolving dependencies.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"

    def make(folder: Path) -> None:
        uv = _uv()
        install = [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), "--compile-bytecode"]
        # Relocatable, because the folder is renamed when it is complete.
        steps = [[uv, "venv", "--quiet", "--relocatable", "--allow-existing", "--python", sys.executable, str(folder)]]
        if arguments:
            steps.append([*install, *arguments])
        for path in locked:
            steps.append([*install, "--no-deps", "--require-hashes", "-r", str(path)])
        for step in steps:
            _run(name, step)

    key = [version, *arguments, *(path.read_text() for path in locked)]
    return cached(f"environment-{name}", key, make) / "bin" / "python"


def _uv() -> str:
    """Returns uv: from the PATH, from the checkout, or else installed by pip."""
    found = shutil.which("uv") or shutil.which(ROOT / ".uv" / "bin" / "uv")
    if found:
        return found
    lock = ROOT / "requirements-uv.lock"

    def make(folder: Path) -> None:
        _run("uv", [sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run("uv", [*pip, "--require-hashes", "-r", str(lock)])

    return str(cached("uv", source(str(lock)), make) / "bin" / "uv")


def _run(name: str, command: list[str]) -> None:
    # Compiles bytecode even if the test process does not write any.
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
        env=variables,
    )
    if result.returncode:
        pytest.skip(f"the environment {name} cannot be installed: {result.stderr.strip()[-300:]}")
