"""Which Beam runner a configured name stands for."""

from __future__ import annotations

_LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""What DirectRunner ends up with; asked for by name, because DirectRunner first tries to download another one."""


def runner_option(runner: str) -> str:
    """Returns Beam's option for a runner."""
    return f"--runner={_LOCAL if runner == 'DirectRunner' else runner}"
