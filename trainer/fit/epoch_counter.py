"""Defines the Ray actor that counts finished epochs; it imports nothing, so that its process starts quickly."""

from __future__ import annotations


class EpochCounter:
    """Holds the highest epoch number reported so far."""

    def __init__(self) -> None:
        self._done = 0

    def set(self, done: int) -> None:
        self._done = max(done, self._done)

    def get(self) -> int:
        return self._done
