"""Command line, Python API, releases, re-indexing, the search server, and the demo, on top of all stages.

`infra.api` has the functions behind the command line: train, embed, index, check, publish, run, and so on.
"""
