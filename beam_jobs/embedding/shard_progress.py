"""Shows the progress of an embedding run on any runner, by listing the shards that are finished."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from beam_jobs.planning.shards import Shard
from searchforge import progress
from searchforge.errors import SearchforgeError
from searchforge.storage.base import Storage

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0

_PAUSE = 20
"""Minimum pause between two listings as a multiple of the duration of the last one: 10,000 shards have 40,000 files."""


@contextmanager
def report_progress(shards: Sequence[Shard], sizes: Sequence[int], folder: str, storage: Storage) -> Iterator[None]:
    """Reports the items of finished shards while the context is open, by listing `folder` at intervals.

    Args:
      sizes: Number of items in each shard.
    """
    pending = {shard.report_name: size for shard, size in zip(shards, sizes, strict=True)}
    for name in pending.keys() & set(storage.list_files(folder)):
        del pending[name]
    if len(pending) < len(shards):
        logger.info(f"  {len(shards) - len(pending)} of {len(shards)} shards are already done")
    finished = threading.Event()
    with progress.track("embed", sum(pending.values())) as advance:

        def watch() -> None:
            last, pause = False, _POLL_SECONDS
            while not last:
                last = finished.wait(pause)
                start = time.monotonic()
                try:
                    done = pending.keys() & set(storage.list_files(folder))
                except (SearchforgeError, OSError):  # the job must not fail because progress cannot be shown
                    continue
                pause = max(_POLL_SECONDS, _PAUSE * (time.monotonic() - start))
                for name in done:
                    advance(pending.pop(name))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
