"""Releases: publishing, channels, rollback, pruning, and the reference client for apps."""
