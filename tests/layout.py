"""Writes the layout of the packages to docs/architecture.md, based on the contracts that import-linter enforces.

python -m tests.layout
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from importlinter.api import read_configuration

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- layout: written by `python -m tests.layout` -->\n", "<!-- end of layout -->\n"
WIDTH = 120
COLUMN = 22
"""Width of the name column, in characters."""


def draw() -> str:
    """Returns the packages and their subpackages, top layer first, each with the summary line of its docstring."""
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    packages, *rooms = [contract for contract in contracts if contract["type"] == "layers"]
    floors = {contract["containers"][0]: contract["layers"] for contract in rooms}
    lines: list[str] = []
    for floor in packages["layers"]:
        for package in _names(floor):
            lines += [*_entry(ROOT / package, ""), *_rooms(ROOT / package, floors[package]), ""]
    return "".join(f"    {line}".rstrip() + "\n" for line in lines[:-1])


def _rooms(package: Path, floors: list[str]) -> Iterator[str]:
    for number, floor in enumerate(floors):
        if number:
            yield f"  {'-' * (COLUMN - 4)}"
        for name in _names(floor):
            yield from _entry(package / name, "  ")


def _entry(path: Path, indent: str) -> Iterator[str]:
    name = f"{path.name}/" if path.is_dir() else f"{path.name}.py"
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    summary = (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n\n")[0]
    first, *rest = textwrap.wrap(" ".join(summary.split()), WIDTH - COLUMN - 4) or [""]
    yield f"{indent + name:<{COLUMN}}{first}"
    for line in rest:
        yield " " * COLUMN + line


def _names(floor: Any) -> list[str]:
    return [name.strip() for name in str(floor).replace(":", "|").split("|")]


def page_with_layout() -> str:
    """Returns the text of docs/architecture.md with the current layout."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{draw()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_layout())
