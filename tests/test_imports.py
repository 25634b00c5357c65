"""Rules for imports and folders that import-linter does not check."""

from __future__ import annotations

import ast
import collections
import graphlib
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PACKAGES = ("searchforge", "trainer", "beam_jobs", "indexer", "serving_check", "infra")
MAX_FILES = 14
"""Maximum number of Python files in a folder."""

HEAVY = {"apache_beam", "numpy", "pydantic", "ray", "scann", "tensorflow", "trainer", "beam_jobs", "indexer"}


def _imports(path: Path, module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_there_are_no_import_cycles() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the cycle


def test_no_folder_has_too_many_files() -> None:
    files = collections.Counter(path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    assert {folder: count for folder, count in files.items() if count > MAX_FILES} == {}


def test_the_command_line_starts_without_heavy_imports() -> None:
    for name in (
        "infra/__init__.py",
        "infra/cli/main.py",
        "infra/cli/operation_commands.py",
        "infra/cli/option_groups.py",
        "infra/cli/pipeline_commands.py",
        "infra/cli/release_commands.py",
        "searchforge/__init__.py",
        "searchforge/console/options.py",
    ):
        assert not _imports(ROOT / name, module_level=True) & HEAVY


def test_no_pickles_are_loaded_and_no_shells_are_used() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text()
            assert "pickle.load" not in source, path
            assert "allow_pickle=True" not in source, path
            assert "shell=True" not in source, path
