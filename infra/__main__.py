"""Runs the `searchforge` command line as `python -m infra`."""

from infra.cli.commands import main

main()
