"""Worker threads that run queries through the Task Library, behind one bounded queue.

Each worker runs one query at a time, on searchers that each have a child process. The maximum number of hits is fixed
when a searcher file is opened, and more hits take longer, so a worker opens a file once for each of MAX_RESULTS that
is requested. Searchers are opened on demand, and the least recently used ones are closed. A child that crashes or hangs
on a query (serving_check.measurement.search then kills it) fails only that query. While a searcher cannot be started,
for lack of memory or disk space for instance, its queries fail, and each of them tries to start it again.

The searchers are kept in an OrderedDict rather than a cachetools.LRUCache because the least recently used one must be
closed before the next one is opened, to bound the memory.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from infra.serve.request_error import RequestError
from searchforge.errors import SearchforgeError, UsageError
from searchforge.processes.isolated import ChildCrash
from serving_check.measurement.search import Hit, Searcher

MAX_RESULTS = (10, 100, 1_000)
"""Maximum numbers of hits with which searcher files are opened."""

logger = logging.getLogger(__name__)
_EXTRA_SEARCHERS = 4
"""Number of searchers that a worker may open on top of those that it opens at the start."""

TimedHits = tuple[list[Hit], float]
"""Hits, best first, and the Task Library's time in milliseconds."""


@dataclass
class _Query:
    path: Path
    query: str
    max_results: int
    future: Future[TimedHits] = field(default_factory=Future)


class SearcherPool:
    """A pool of workers. Use as a context manager, which terminates every child on exit.

    Args:
      files: Searcher files that every worker opens at the start.
      workers: Number of workers, and so of queries that run at the same time.
      max_queued: Maximum number of queries that wait for a worker; further ones are refused.
    """

    def __init__(self, files: Sequence[Path], workers: int, max_queued: int) -> None:
        self._queue: queue.Queue[_Query | None] = queue.Queue()
        self._max_queued = max_queued
        self._slots = threading.Semaphore(workers + max_queued)
        self._closing = False
        self._lock = threading.Lock()  # so that no query is queued after the workers' end markers
        self._folder = tempfile.TemporaryDirectory(prefix="searchforge-pool-")
        image = Path(self._folder.name) / "warm-up.png"
        Image.new("RGB", (64, 64), "grey").save(image)
        warm_ups = {"text": "warm-up", "image": str(image)}
        self._workers = [_Worker(number + 1, self._queue, files, warm_ups) for number in range(workers)]

    def start(self) -> None:
        """Opens the files.

        Raises:
          UsageError, JobError: A file is missing, or the Task Library cannot open it.
        """
        for worker in self._workers:
            worker.start()
        for worker in self._workers:
            worker.opened.result()

    @property
    def workers(self) -> int:
        """Number of workers."""
        return len(self._workers)

    @property
    def queued(self) -> int:
        """Number of queries that wait for a worker."""
        return self._queue.qsize()

    @property
    def crashes(self) -> int:
        """Number of children that have crashed or hung."""
        return sum(worker.crashes for worker in self._workers)

    def user_info(self, path: Path) -> str:
        """Returns the JSON that the indexer stored in one of the files opened at the start."""
        return self._workers[0].user_info[path]

    def search(self, path: Path, query: str, max_results: int) -> Future[TimedHits]:
        """Queues a query.

        Args:
          path: Searcher file.
          query: Text, or the path of an image.
          max_results: Maximum number of hits, at most the last of MAX_RESULTS.

        Raises:
          RequestError: The queue is full. The future raises it if the query fails.
        """
        task = _Query(path, query, max_results)
        with self._lock:
            if self._closing:
                raise RequestError(503, "the server is shutting down")
            # The length of the queue does not do: it also counts a query that an idle worker is about to take.
            if not self._slots.acquire(blocking=False):
                raise RequestError(
                    503, f"{self._max_queued} queries are already waiting; retry in a second", retry_after=1
                )
            self._queue.put(task)
        task.future.add_done_callback(lambda _: self._slots.release())
        return task.future

    def close(self) -> None:
        """Finishes running queries, refuses waiting ones, and terminates every child. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        with contextlib.suppress(queue.Empty):
            while True:
                task = self._queue.get_nowait()
                if task is not None:
                    task.future.set_exception(RequestError(503, "the server is shutting down"))
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.join()
        self._folder.cleanup()

    def __enter__(self) -> SearcherPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """A thread with open searchers.

    Attributes:
      opened: Future that completes when the files of the start are open.
      user_info: JSON that the indexer stored, by file.
      crashes: Number of children that have crashed or hung.
    """

    def __init__(
        self,
        number: int,
        queries: queue.Queue[_Query | None],
        files: Sequence[Path],
        warm_ups: Mapping[str, str],
    ) -> None:
        self.opened: Future[None] = Future()
        self.user_info: dict[Path, str] = {}
        self.crashes = 0
        self._name = f"worker {number}"
        self._queue = queries
        self._files = files
        self._warm_ups = warm_ups
        self._searchers: OrderedDict[tuple[Path, int], Searcher] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._open_files()
        except BaseException as error:
            self.opened.set_exception(error)
        else:
            self.opened.set_result(None)
            while (task := self._queue.get()) is not None:
                if task.future.set_running_or_notify_cancel():
                    try:
                        task.future.set_result(self._search(task))
                    except BaseException as error:
                        task.future.set_exception(error)
                        # Reopen what a crash closed, so that the next query does not wait for it. If that fails, the
                        # next query tries again and reports why.
                        with contextlib.suppress(Exception):
                            self._open_files()
        finally:
            for key in list(self._searchers):
                with contextlib.suppress(Exception):
                    self._close(key)

    def _open_files(self) -> None:
        for path in self._files:
            self._searcher((path, MAX_RESULTS[0]))

    def _search(self, task: _Query) -> TimedHits:
        key = (task.path, next(limit for limit in MAX_RESULTS if limit >= task.max_results))
        try:
            return self._searcher(key).timed_search(task.query, task.max_results)
        except ChildCrash as crash:
            self.crashes += 1
            self._close(key)
            logger.error("%s: %s", self._name, crash)
            first_line = str(crash).partition("\n")[0]
            raise RequestError(500, f"{self._name} crashed on this query and was restarted: {first_line}") from None
        except SearchforgeError as error:
            raise RequestError(400 if isinstance(error, UsageError) else 500, str(error)) from None
        except OSError as error:
            self._close(key)
            logger.error("%s cannot start a searcher: %s", self._name, error)
            raise RequestError(
                503,
                f"{self._name} cannot start a searcher ({error}); free disk space, memory or processes; "
                "each query tries again",
                retry_after=1,
            ) from None
        except BaseException:
            self._close(key)  # its child may still be running the query
            raise

    def _searcher(self, key: tuple[Path, int]) -> Searcher:
        """Returns an open searcher; replaces one whose child ended while idle, and closes others to make room."""
        if key in self._searchers and self._searchers[key].ended:
            self.crashes += 1
            self._close(key)
        if key not in self._searchers:
            while len(self._searchers) >= len(self._files) + _EXTRA_SEARCHERS:
                self._close(next(iter(self._searchers)))
            path, max_results = key
            searcher = Searcher(path)
            try:
                # Fixes the maximum number of hits, and keeps the cost of a first query out of the next one's time.
                searcher.timed_search(self._warm_ups[searcher.kind], max_results)
            except BaseException:
                searcher.close()
                raise
            self.user_info[path] = searcher.user_info
            self._searchers[key] = searcher
        self._searchers.move_to_end(key)
        return self._searchers[key]

    def _close(self, key: tuple[Path, int]) -> None:
        if key in self._searchers:
            self._searchers.pop(key).close()
