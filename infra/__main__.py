"""`python -m infra` is `searchforge`."""

from infra.cli.commands import main

main()
