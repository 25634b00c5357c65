"""The command line and the Python API over all stages, releases, and the demo.

`infra.api` has the functions of the command line: train, embed, index, check, publish, run, and so on.
"""
