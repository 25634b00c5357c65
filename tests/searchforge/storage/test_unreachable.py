"""An unreachable storage is reported in one message; a command that a person waits for gives up soon."""

from __future__ import annotations

import logging
import socket

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from searchforge.errors import JobError
from searchforge.storage import patience
from searchforge.storage.gcs import GcsStorage
from searchforge.storage.gcs_client import RetryPolicy


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Makes clients use a server that does not exist; returns its port."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    return port


def test_retries_are_logged_and_end_with_one_message(port: int, caplog: pytest.LogCaptureFixture) -> None:
    storage = GcsStorage("gs://bucket/apps", RetryPolicy(retry_seconds=0.5, first_delay_seconds=0.01))
    with caplog.at_level(logging.WARNING), pytest.raises(JobError) as error:
        storage.read("CURRENT.json")
    (line,) = (record.message for record in caplog.records if "trying again" in record.message)
    assert "Connection refused" in line
    message = str(error.value)
    assert message.startswith("gs://bucket/apps/CURRENT.json cannot be used") and f"port={port}" in message
    assert "check the network" in message and "\n" not in message and "Caused by" not in message


@pytest.mark.parametrize("command", ["status", "releases", "rollback", "promote", "search dog", "encoder list"])
def test_a_command_that_a_person_waits_for_gives_up_soon(
    port: int, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "COMMAND_SECONDS", 0.2)
    result = CliRunner().invoke(main, [*command.split(), "--workspace", "gs://bucket/apps"])
    assert result.exit_code == JobError.exit_code
    assert result.output.count("cannot be used") == 1 and "Traceback" not in result.output


def test_retries_are_limited_only_inside_the_block() -> None:
    assert RetryPolicy().retry_seconds == patience.JOB_SECONDS
    with patience.limit_retries(20.0):
        assert RetryPolicy().retry_seconds == 20.0
        with patience.limit_retries(60.0):
            assert RetryPolicy().retry_seconds == 20.0
    assert RetryPolicy().retry_seconds == patience.JOB_SECONDS
