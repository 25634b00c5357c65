"""Workers that answer queries through the Task Library, behind one bounded queue.

A worker is a thread with searchers, each in a child process of its own: one query at a time, so that as many queries
are answered at once as there are workers. The number of hits is fixed when a file is opened, and more hits take
longer, so a file is open once for each of WIDTHS that is asked for. Files are opened when they are first needed, and
those that were unused the longest are closed. A child that crashes on a query, or hangs
(serving_check.measurement.search ends it then), costs that query only.
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

from infra.serve.refusal import Refusal
from searchforge.errors import SearchforgeError, UsageError
from searchforge.processes.isolated import ChildCrash
from serving_check.measurement.search import Hit, Searcher

WIDTHS = (10, 100, 1_000)
"""Numbers of hits that files are opened for."""

_LOG = logging.getLogger(__name__)
_SPARE = 4
"""Open files of a worker beside those that it opens at the start."""

Found = tuple[list[Hit], float]
"""Hits, best first, and the Task Library's milliseconds."""


@dataclass
class _Task:
    path: Path
    query: str
    hits: int
    future: Future[Found] = field(default_factory=Future)


class Pool:
    """The workers. Use as a context manager: leaving it ends every child.

    Args:
      files: searcher files that every worker opens at the start.
      workers: queries that are answered at once.
      waiting: queries that may wait; further ones are refused.
    """

    def __init__(self, files: Sequence[Path], workers: int, waiting: int) -> None:
        self._tasks: queue.Queue[_Task | None] = queue.Queue()
        self._waiting = waiting
        self._room = threading.Semaphore(workers + waiting)
        self._ending = False
        self._lock = threading.Lock()  # so that nothing is queued behind the end
        self._folder = tempfile.TemporaryDirectory(prefix="searchforge-pool-")
        image = Path(self._folder.name) / "first.png"
        Image.new("RGB", (64, 64), "grey").save(image)
        first_queries = {"text": "first", "image": str(image)}
        self._workers = [_Worker(number + 1, self._tasks, files, first_queries) for number in range(workers)]

    def start(self) -> None:
        """Opens the files.

        Raises:
          UsageError, JobError: a file is missing, or the Task Library does not open it.
        """
        for worker in self._workers:
            worker.start()
        for worker in self._workers:
            worker.opened.result()

    @property
    def workers(self) -> int:
        """Queries that are answered at once."""
        return len(self._workers)

    @property
    def waiting(self) -> int:
        """Queries that wait for a worker."""
        return self._tasks.qsize()

    @property
    def crashes(self) -> int:
        """Children that crashed or hung."""
        return sum(worker.crashes for worker in self._workers)

    def user_info(self, path: Path) -> str:
        """Returns what the indexer stored in a file that is opened at the start."""
        return self._workers[0].user_info[path]

    def search(self, path: Path, query: str, hits: int) -> Future[Found]:
        """Queues a query (a text, or an image's path).

        Args:
          path: of the searcher file.
          hits: at most the last of WIDTHS.

        Raises:
          Refusal: too many queries are waiting. The future raises it where the query gets no answer.
        """
        task = _Task(path, query, hits)
        with self._lock:
            if self._ending:
                raise Refusal(503, "the server is ending")
            # Not by the queue's length, in which a query also is for the moment until an idle worker takes it.
            if not self._room.acquire(blocking=False):
                raise Refusal(503, f"{self._waiting} queries are waiting already; ask again in a second", retry_after=1)
            self._tasks.put(task)
        task.future.add_done_callback(lambda _: self._room.release())
        return task.future

    def close(self) -> None:
        """Ends every child; what is running is finished, what is waiting is refused. A second call does nothing."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        with contextlib.suppress(queue.Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    task.future.set_exception(Refusal(503, "the server is ending"))
        for _ in self._workers:
            self._tasks.put(None)
        for worker in self._workers:
            worker.join()
        self._folder.cleanup()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """A thread with open searchers.

    Attributes:
      opened: done once the files of the start are open.
      user_info: by file.
      crashes: number of children that crashed or hung.
    """

    def __init__(
        self, number: int, tasks: queue.Queue[_Task | None], files: Sequence[Path], first_queries: Mapping[str, str]
    ) -> None:
        self.opened: Future[None] = Future()
        self.user_info: dict[Path, str] = {}
        self.crashes = 0
        self._name = f"worker {number}"
        self._tasks = tasks
        self._files = files
        self._first_queries = first_queries
        self._searchers: OrderedDict[tuple[Path, int], Searcher] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            for path in self._files:
                self._searcher((path, WIDTHS[0]))
        except BaseException as error:
            self.opened.set_exception(error)
        else:
            self.opened.set_result(None)
            while (task := self._tasks.get()) is not None:
                if task.future.set_running_or_notify_cancel():
                    try:
                        task.future.set_result(self._answer(task))
                    except BaseException as error:
                        task.future.set_exception(error)
                        self._open_again()
        finally:
            for searcher in self._searchers.values():
                searcher.close()

    def _open_again(self) -> None:
        """Opens what a crash has closed, so that the next query does not wait for it."""
        with contextlib.suppress(SearchforgeError):  # else that query says why
            for path in self._files:
                self._searcher((path, WIDTHS[0]))

    def _answer(self, task: _Task) -> Found:
        key = (task.path, next(width for width in WIDTHS if width >= task.hits))
        try:
            return self._searcher(key).timed_search(task.query, task.hits)
        except ChildCrash as crash:
            self.crashes += 1
            self._drop(key)
            _LOG.error("%s: %s", self._name, crash)
            raise Refusal(
                500, f"{self._name} crashed on this query and is replaced: {str(crash).partition(chr(10))[0]}"
            ) from None
        except SearchforgeError as error:
            raise Refusal(400 if isinstance(error, UsageError) else 500, str(error)) from None
        except BaseException:
            self._drop(key)  # it may be in the middle of an answer
            raise

    def _searcher(self, key: tuple[Path, int]) -> Searcher:
        """Returns an open searcher; makes room for one that has to be opened, and replaces one that has ended idle."""
        if key in self._searchers and self._searchers[key].ended:
            self.crashes += 1
            self._drop(key)
        if key not in self._searchers:
            while len(self._searchers) >= len(self._files) + _SPARE:
                self._drop(next(iter(self._searchers)))
            path, width = key
            opened = Searcher(path)
            try:
                # Says how many hits may be asked for, and takes what a first query costs out of the next one's time.
                opened.timed_search(self._first_queries[opened.kind], width)
            except BaseException:
                opened.close()
                raise
            self.user_info[path] = opened.user_info
            self._searchers[key] = opened
        self._searchers.move_to_end(key)
        return self._searchers[key]

    def _drop(self, key: tuple[Path, int]) -> None:
        if key in self._searchers:
            self._searchers.pop(key).close()
