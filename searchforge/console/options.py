"""Common behaviour of all commands: configuration options, error messages, and reports as text or JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import click

from searchforge.console import logs
from searchforge.console.full_disk import explain_full_disk
from searchforge.errors import JobError, SearchforgeError, UsageError
from searchforge.proxy import bypass_proxy
from searchforge.storage import patience

Command = TypeVar("Command", bound=Callable[..., Any])

SUPPORTED_PYTHON = ((3, 10), (3, 11))
"""Python versions that tflite-support has wheels for."""


def config_options(function: Command) -> Command:
    """Adds `--config`, `--workspace`, `--set`, `--json` and `--log-format`.

    The function receives `config: Config` and `as_json`. Options named after a configuration key, with `__` for the dot
    (`train__epochs`, and `__releases` for a top-level key), override the configuration.
    """

    @functools.wraps(function)
    def wrapper(
        config_path: str | None,
        workspace: str | None,
        settings: tuple[str, ...],
        log_format: logs.Format,
        **values: Any,
    ) -> Any:
        from searchforge.config import load_config

        logs.configure(log_format)
        overrides = {**dict(_parse_setting(setting) for setting in settings), **_overrides(values)}
        if workspace:
            overrides["workspace"] = workspace
        others = {name: value for name, value in values.items() if "__" not in name}
        return function(config=load_config(config_path, overrides), **others)

    for option in (
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            envvar="SEARCHFORGE_LOG",
            show_envvar=True,
            help="Format of log lines on stderr.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Configuration key, for example train.epochs=5.",
        ),
        click.option("--workspace", help="Folder or gs://bucket/prefix of all artifacts."),
        click.option("--config", "config_path", type=click.Path(), help="YAML configuration file."),
    ):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


def repeated_options() -> list[str]:
    """Returns the configuration options of the running command, for passing them to another command."""
    given = click.get_current_context().params
    options = ["--log-format", given["log_format"]]
    for name, option in (("config_path", "--config"), ("workspace", "--workspace")):
        options += [option, given[name]] if given[name] else []
    settings = [f"{key}={json.dumps(value)}" for key, value in _overrides(given).items()]
    return options + [part for setting in (*given["settings"], *settings) for part in ("--set", setting)]


def reports_errors(function: Command) -> Command:
    """Prepares the process for a command; prints an error as one message and exits with its code.

    Errors are SearchforgeErrors and that of a full disk. Before the command runs, the Python version is checked,
    libraries are silenced, and connections to this machine bypass an HTTP proxy.
    """

    @functools.wraps(function)
    def wrapper(*arguments: Any, **values: Any) -> Any:
        try:
            require_python(sys.version_info[:2])
            quiet_libraries()
            bypass_proxy()
            return function(*arguments, **values)
        except SearchforgeError as error:
            logs.print_error(error)
            sys.exit(error.exit_code)
        except Exception as error:
            message = explain_full_disk(error, _written_folders())
            if message is None:
                raise
            logs.print_error(JobError(message))
            sys.exit(JobError.exit_code)

    return wrapper  # type: ignore[return-value]


def answers_soon(function: Command) -> Command:
    """Makes a command that a person waits for give up soon when its storage cannot be reached."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **values: Any) -> Any:
        with patience.limit_retries(patience.COMMAND_SECONDS):
            return function(*arguments, **values)

    return wrapper  # type: ignore[return-value]


def quiet_libraries() -> None:
    """Keeps notices of libraries out of a command's output. Call it before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google")
    logs.configure("text")


def require_python(version: tuple[int, ...]) -> None:
    """Raises UsageError if tflite-support does not support this Python version."""
    if version[:2] not in SUPPORTED_PYTHON:
        raise UsageError(
            f"Python {version[0]}.{version[1]} is not supported: tflite-support has wheels for Python 3.10 and 3.11; "
            "run `make setup PYTHON=python3.11`"
        )


def show(report: Any, as_json: bool, summary: str) -> None:
    """Prints a report as JSON, or its summary; errors as in `echo`."""
    echo(json.dumps(report, indent=2, ensure_ascii=False, default=_jsonable) if as_json else summary)


def echo(text: str, newline: bool = True) -> None:
    """Prints a text on stdout.

    Raises:
      JobError: The disk that stdout is redirected to is full.
    """
    try:
        click.echo(text, nl=newline)
    except OSError as error:
        if explain_full_disk(error) is None:
            raise
        if sys.stdout is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python tries to write the rest when it exits
        raise JobError(
            f"the standard output cannot be written: {error.strerror}; free some space there, or redirect it elsewhere"
        ) from error


def _written_folders() -> list[str]:
    """Returns the folders that options of the running command name."""
    context = click.get_current_context(silent=True)
    given = context.params if context else {}
    return [str(given[name]) for name in ("workspace", "__releases") if given.get(name)]


def _jsonable(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]


def _overrides(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the given options that set configuration keys, by key."""
    return {
        name.replace("__", ".").lstrip("."): value
        for name, value in values.items()
        if "__" in name and value is not None and value != ()
    }


def _parse_setting(setting: str) -> tuple[str, Any]:
    import yaml

    from searchforge.config import parse_yaml

    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise UsageError(f"invalid --set {setting!r}; expected KEY=VALUE, for example train.epochs=5")
    try:
        return key, parse_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {setting!r}: the value is not valid YAML: {error}") from None
