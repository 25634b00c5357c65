"""Python environments of their own for tools and servers that cannot share ours; installed once, by uv."""

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
    """Returns the Python of an environment; the test is skipped where it cannot be had.

    Args:
      arguments: packages to install.
      locked: requirements files with hashes, installed as they are.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"

    def make(folder: Path) -> None:
        uv = _uv()
        install = [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), "--compile-bytecode"]
        # Relocatable: the folder gets its name when it is whole.
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
    """uv: the one on the PATH, that of the checkout, or one that pip installs."""
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
    # Bytecode is compiled also where the tests' own process writes none.
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
