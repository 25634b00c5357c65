"""A full disk gives one message, not a stack trace, wherever a command writes."""

from __future__ import annotations

import errno
import logging
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from searchforge.artifacts.workspace import Workspace
from searchforge.console import logs
from searchforge.console.full_disk import explain_full_disk
from searchforge.errors import JobError
from tests.infra.releases.sample_artifacts import commit_checked

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _run(
    *arguments: str, stdout: IO[bytes] | int = subprocess.DEVNULL, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra", *arguments]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, preexec_fn=before, timeout=60, check=False
    )


@pytest.mark.parametrize("command", [["releases"], ["releases", "--json"], ["status", "--prometheus"]])
def test_a_report_that_cannot_be_printed_is_one_message(tmp_path: Path, command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = _run(*command, "--workspace", str(tmp_path), stdout=full)
    assert result.returncode == JobError.exit_code
    assert result.stderr == (
        "error: the standard output cannot be written: No space left on device; "
        "free some space there, or redirect it elsewhere\n"
    )


def test_a_release_folder_that_fills_up_is_one_message(tmp_path: Path) -> None:
    """A file size limit simulates a full disk: the write fails midway."""
    workspace = Workspace(str(tmp_path / "workspace"))
    check = commit_checked(workspace, "a", kilobytes=100)
    releases = tmp_path / "releases"
    result = _run(
        *("publish", "--workspace", workspace.root, "--releases", str(releases), "--check", check),
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert result.returncode == JobError.exit_code
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {releases}") and "cannot be written: File too large; free some space there" in line
    assert not list(releases.glob("*/release.json"))


def _raised_from(cause: Exception) -> Exception:
    try:
        raise RuntimeError("the library failed") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        _raised_from(FULL),
        RuntimeError("worker 3: OSError: [Errno 28] No space left on device"),
        sqlite3.OperationalError("database or disk is full"),
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
    ],
)
def test_a_full_disk_is_recognized_in_the_errors_of_libraries(error: Exception, tmp_path: Path) -> None:
    message = explain_full_disk(error, [str(tmp_path)])
    assert message is not None and "free some space and try again" in message and f"{tmp_path} has" in message


def test_other_errors_are_not_taken_for_a_full_disk() -> None:
    for error in (PermissionError(errno.EACCES, "Permission denied"), ValueError("full"), _raised_from(KeyError("x"))):
        assert explain_full_disk(error) is None


def test_an_error_that_a_library_logs_has_no_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    try:
        raise JobError("x cannot be used: No space left on device")
    except JobError as error:
        logging.getLogger("apache_beam.runners.common").exception(str(error))
    output = capsys.readouterr().err
    assert output == "ERROR:apache_beam.runners.common:x cannot be used: No space left on device\n"
