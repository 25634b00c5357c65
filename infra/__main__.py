"""`python -m infra` is `searchforge`."""

from infra.cli import main

main()
