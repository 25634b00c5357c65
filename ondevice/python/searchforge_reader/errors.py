"""Errors of the reader. Every message states the value found, what was expected and what to do."""

from __future__ import annotations


class ReaderError(Exception):
    """The reader cannot do what was asked."""


class DamagedFile(ReaderError):
    """The file contradicts its format."""


class UnsupportedFile(ReaderError):
    """The file is valid, but needs what the reader lacks."""
