"""The documentation agrees with the program: configuration, commands, links, paths and layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from click import Group

from infra.cli.main import main
from searchforge.config import Config, load_config
from tests import layout

ROOT = Path(__file__).parent.parent


def test_the_documented_configuration_lists_every_key_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block
    documented: dict[str, Any] = yaml.safe_load(block.group(1))
    overrides = {
        f"{section}.{key}": value
        for section, values in documented.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    assert load_config(None, overrides) == Config()
    for section, values in Config().model_dump().items():
        if isinstance(values, dict):
            assert documented[section].keys() == values.keys()


def test_documented_commands_exist() -> None:
    assert isinstance(main, Group)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        name for page in pages for name in re.findall(r"(?:^ {4}|`)searchforge (\w+)", page.read_text(), re.MULTILINE)
    }
    assert shown and shown <= main.commands.keys()


def test_links_resolve() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_documented_paths_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for path in re.findall(
            r"`((?:searchforge|trainer|beam_jobs|indexer|serving_check|infra|tests)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_layout_is_drawn_from_the_contracts() -> None:
    assert layout.page_with_layout() == layout.PAGE.read_text(), "run `python -m tests.layout`"
