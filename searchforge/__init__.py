"""Shared foundation of all stages: configuration, artifacts, storage and errors. It imports none of the stages."""

__version__ = "0.1.0"
