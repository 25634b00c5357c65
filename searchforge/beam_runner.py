"""Maps configured runner names to Beam options."""

from __future__ import annotations

_LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""The runner that DirectRunner falls back to after trying to download another one; naming it avoids the download."""


def runner_option(runner: str) -> str:
    """Returns the Beam option that selects a runner."""
    return f"--runner={_LOCAL if runner == 'DirectRunner' else runner}"
