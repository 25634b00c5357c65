"""Parses deployment files and the commands in them."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "infra" / "deploy"
DOCKERFILES = sorted(DEPLOY.rglob("Dockerfile"))
MANIFESTS = [
    DEPLOY / "kubernetes" / "base" / "cron_job.yaml",
    DEPLOY / "airflow" / "pod.yaml",
    DEPLOY / "beam" / "flink" / "cluster.yaml",
    DEPLOY / "beam" / "flink" / "embed.yaml",
    DEPLOY / "ray" / "rayjob.yaml",
]
"""Manifests of workloads on Kubernetes."""


def load(path: Path) -> Any:
    """Returns the only document of a YAML file."""
    return yaml.safe_load(path.read_text())


def pods(document: Any) -> Iterator[dict[str, Any]]:
    """Yields the `spec` of every pod in a document."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for value in document:
            yield from pods(value)


def parse_command(words: list[str]) -> dict[str, Any]:
    """Parses the options of `searchforge COMMAND ...` or `python -m MODULE ...`.

    Raises:
      click.UsageError: The options are invalid.
    """
    if words[0] == "searchforge":
        group = importlib.import_module("infra.cli.main").main
        name, arguments = words[1], words[2:]
        assert name in group.commands, f"there is no command {name}"
        command: click.Command = group.commands[name]
    else:
        assert words[:2] == ["python", "-m"]
        name, arguments = words[2], words[3:]
        module = importlib.import_module(f"{name}.__main__" if (ROOT / name).is_dir() else name)
        command = module.main
    return command.make_context(name, arguments).params


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile with their arguments; continued lines are joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def shell_commands(dockerfile: Path) -> list[list[str]]:
    """Returns the words of every command in RUN instructions."""
    runs = [text for name, text in instructions(dockerfile) if name == "RUN"]
    return [shlex.split(command) for run in runs for command in run.split("&&")]
