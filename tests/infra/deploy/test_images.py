"""Images contain the locked runtime packages only, and do not run as root."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.infra.deploy.manifests import DEPLOY, DOCKERFILES, ROOT, instructions, shell_commands
from tests.test_packaging import PACKAGES

LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-dev.lock", DEPLOY / "ray" / "gcp.lock"]
QUIET = {"--quiet", "--no-cache-dir", "--editable", "--compile-bytecode", "--python", "$(BIN)/python"}
"""Options of pip and of uv that do not change what is installed."""


def test_the_command_line_image_installs_the_same_packages_as_make_setup() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (install,) = re.findall(r"^INSTALL := (.*)$", makefile, re.MULTILINE)
    commands = [
        shlex.split(f"{install} {line}") for line in re.findall(r"^\t\$\(INSTALL\) (.*)$", makefile, re.MULTILINE)
    ]
    made = [_install(command) for command in commands]
    built = [_install(command) for command in shell_commands(DEPLOY / "docker" / "Dockerfile") if "install" in command]
    assert built == made
    assert len(built) == 2


def test_every_image_installs_from_locks_with_hashes() -> None:
    for dockerfile in DOCKERFILES:
        for command in shell_commands(dockerfile):
            if command[:2] == ["pip", "install"]:
                assert "--no-deps" in command
                assert "--require-hashes" in command or command[-1] == "."


def test_images_contain_no_development_packages() -> None:
    installed = _pins(ROOT / "requirements.lock").keys()
    assert installed.isdisjoint({"mypy", "playwright", "pytest", "pytest-xdist", "ruff", "types-pyyaml"})
    copied = [text for dockerfile in DOCKERFILES for name, text in instructions(dockerfile) if name == "COPY"]
    assert copied and not any("requirements-dev" in text for text in copied)


def test_locks_agree_on_versions() -> None:
    runtime, *others = (_pins(path) for path in LOCKS)
    for other in others:
        shared = runtime.keys() & other.keys()
        assert shared and {name: other[name] for name in shared} == {name: runtime[name] for name in shared}


@pytest.mark.parametrize(
    "dockerfile",
    [path for path in DOCKERFILES if path.parent.name != "dataflow"],  # its launcher needs root
    ids=lambda path: path.parent.name,
)
def test_the_last_stage_runs_as_a_numeric_user_other_than_root(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    last = max(place for place, (name, _) in enumerate(steps) if name == "FROM")
    users = [text for name, text in steps[last:] if name == "USER"]
    assert users and re.fullmatch(r"[1-9]\d*", users[-1])


def test_all_images_use_the_same_supported_python() -> None:
    versions = {
        text.removeprefix("PYTHON=")
        for dockerfile in DOCKERFILES
        for name, text in instructions(dockerfile)
        if name == "ARG" and text.startswith("PYTHON=")
    }
    assert versions == {"3.11"}


def test_the_build_context_contains_only_what_images_need() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in let_in)
    assert let_in == {"LICENSE", "README.md", "pyproject.toml", "setup.py", "requirements.lock", *PACKAGES}


def test_copied_files_exist() -> None:
    for dockerfile in DOCKERFILES:
        for name, text in instructions(dockerfile):
            if name == "COPY" and not text.startswith("--from"):
                assert all((ROOT / source).exists() for source in text.split()[:-1]), text


def _install(command: list[str]) -> list[str]:
    """Returns the arguments of an install command that determine the packages, without development packages."""
    words = [word for word in command[command.index("install") + 1 :] if word not in QUIET]
    return " ".join(words).replace("-r requirements-dev.lock", "").split()


def _pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", lock.read_text(), re.MULTILINE))
