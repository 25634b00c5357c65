"""Runs the `searchforge` command line as `python -m infra`."""

from infra.cli.main import main

main()
