"""Lets Beam's `--setup_file` ship the project to workers; every piece of metadata is in pyproject.toml."""

from setuptools import setup

setup()
