"""The packages import each other only as docs/architecture.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("searchforge", "trainer", "beam_jobs", "indexer", "serving_check", "infra")
ALLOWED = {
    "searchforge": set(),
    "trainer": {"searchforge"},
    "beam_jobs": {"searchforge"},
    "indexer": {"searchforge"},
    "serving_check": {"searchforge"},
    "infra": set(PACKAGES),
}
HEAVY = {"apache_beam", "numpy", "pydantic", "ray", "scann", "tensorflow", "trainer", "beam_jobs", "indexer"}


def _imports(path: Path, module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        others = _imports(path) & (set(PACKAGES) - {package})
        assert others <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {others - ALLOWED[package]}"


def test_the_command_line_starts_without_heavy_imports() -> None:
    for name in ("infra/__init__.py", "infra/cli.py", "searchforge/__init__.py", "searchforge/cli.py"):
        assert not _imports(ROOT / name, module_level=True) & HEAVY


def test_nothing_loads_foreign_pickles() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text()
            assert "pickle.load" not in source, path
            assert "allow_pickle=True" not in source, path
            assert "shell=True" not in source, path
