"""Python environments of their own for tools and servers that cannot share ours; kept between runs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import beam_servers

UV = "uv==0.13.9"
"""Installs in seconds what takes pip minutes."""
INSTALL_SECONDS = 900


def environment(name: str, *arguments: str, locked: tuple[Path, ...] = ()) -> Path:
    """Returns the Python of an environment; the test is skipped where it cannot be had.

    Args:
      arguments: packages to install.
      locked: requirements files with hashes, installed as they are.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    content = " ".join((*arguments, version)).encode() + b"".join(path.read_bytes() for path in locked)
    folder = beam_servers.cache() / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    uv = [str(folder / "bin" / "uv"), "pip", "install", "--python", str(python)]
    steps = [[str(python), "-m", "pip", "install", UV]]
    if arguments:
        steps.append([*uv, *arguments])
    for path in locked:
        steps.append([*uv, "--no-deps", "--require-hashes", "-r", str(path)])
    for step in steps:
        command = [*step, "--quiet"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if result.returncode:
            pytest.skip(f"the environment {name} cannot be installed: {result.stderr.strip()[-300:]}")
    (folder / "complete").touch()
    return python
