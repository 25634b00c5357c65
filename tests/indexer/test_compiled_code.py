"""Compiled functions work for a user who may write neither to the installation nor to a home folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A copy of the package in which no machine code can be cached: every `__pycache__` is a file."""
    root = tmp_path / "installation"
    shutil.copytree(ROOT / "indexer", root / "indexer", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [root / "indexer", *(path for path in (root / "indexer").rglob("*") if path.is_dir())]:
        (folder / "__pycache__").touch()
    return root


def _python(installation: Path, *arguments: str) -> str:
    """Runs Python without a home folder; returns its output."""
    environment = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment |= {"HOME": "/dev/null/home", "PYTHONPATH": f"{installation}{os.pathsep}{ROOT}"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd="/").stdout.strip()


def test_the_workspace_holds_the_cache_if_nothing_else_is_writable(installation: Path, tmp_path: Path) -> None:
    folder = _python(installation, "-m", "indexer.compiled_code", str(tmp_path / "workspace"))
    assert folder.startswith(str(tmp_path / "workspace" / "cache" / "numba"))


def test_a_cache_that_others_can_write_to_is_not_used(installation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "workspace" / "cache" / "numba"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert _python(installation, "-m", "indexer.compiled_code", str(tmp_path / "workspace")) == ""


def test_without_any_cache_functions_are_compiled_in_memory(installation: Path, tmp_path: Path) -> None:
    assert _python(installation, "-m", "indexer.compiled_code", "/dev/null/workspace") == ""
    code = "import indexer.build; print(indexer.__file__)"
    assert _python(installation, "-c", code).startswith(str(installation))
