"""Shared parts of the command lines: options, log formats and progress bars."""
