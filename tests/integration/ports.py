"""Unused ports for servers of the integration tests."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Returns an unused port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
