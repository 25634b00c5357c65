"""Turns tasks into records in a pool of threads, each of which reads, decodes and embeds a batch of its own.

Reading and decoding one batch thus overlaps with encoding another, without queues in between. Remote files are read
ahead by a second pool.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from beam_jobs.corpus.items import Item
from beam_jobs.corpus.reading import read_bytes
from beam_jobs.embedding.models import Backend, Model, load_model
from beam_jobs.embedding.stored_records import read_records
from beam_jobs.planning.distributions import Distribution
from beam_jobs.planning.shards import Shard, ShardReport, Task, write_records
from searchforge.artifacts.manifest import Modality
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.hashing import sha256_bytes
from searchforge.image_decoding import RejectedInput
from searchforge.preprocessing import Preprocessing
from searchforge.storage.base import Storage

_READ_AHEAD = 32
"""Number of concurrent remote reads; these wait for the network rather than for a core."""


@dataclass(frozen=True)
class EmbedOptions:
    """Options of an embedding worker.

    Attributes:
      workspace: Root of the workspace, a path or URL.
      encoder: Id of the encoder bundle.
      folder: Folder for the shards, relative to the root.
      threads: Number of embedding threads; 0 means one per core that the process may use.
      batch_size: Number of inputs per call of TensorFlow.
      max_bytes, max_pixels: Size limits of an input.
    """

    workspace: str
    encoder: str
    folder: str
    modality: Modality
    backend: Backend
    preprocessing: str
    threads: int
    batch_size: int
    max_bytes: int
    max_pixels: int

    def load_model(self) -> Model:
        """Loads the encoder; see `beam_jobs.embedding.models.load_model`."""
        folder = Workspace(self.workspace).local("encoders", self.encoder)
        return load_model(folder, self.modality, self.backend, self.preprocessing, self.batch_size)


@dataclass
class Outcome:
    """Result of some tasks; its attributes correspond to those of ShardReport."""

    records: list[EmbeddingRecord] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    embedded: int = 0
    bytes_read: int = 0
    batch_sizes: list[float] = field(default_factory=list)
    batch_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Outcome) -> None:
        """Adds the result of further tasks."""
        self.records += other.records
        self.rejects += other.rejects
        self.embedded += other.embedded
        self.bytes_read += other.bytes_read
        self.batch_sizes += other.batch_sizes
        self.batch_ms += other.batch_ms

    def reject(self, items: Sequence[Item], error: RejectedInput) -> None:
        """Records that items cannot be embedded."""
        why = {"reason": error.reason, "detail": error.detail, "may_pass": error.may_pass}
        self.rejects += [{"id": item.id, "uri": item.uri, **why} for item in items]


def write_outcome(storage: Storage, folder: str, shard: Shard, outcome: Outcome) -> ShardReport:
    """Writes a shard's records and rejects, and returns the report for the caller to write.

    Raises:
      JobError, OSError: The files cannot be written.
    """
    info, rejects = write_records(storage, folder, shard, outcome.records, outcome.rejects)
    return ShardReport(
        shard=info.model_dump(),
        embedded=outcome.embedded,
        reused=len(outcome.records) - outcome.embedded,
        rejected=dict(sorted(Counter(reject["reason"] for reject in outcome.rejects).items())),
        retryable=sum(reject["may_pass"] for reject in outcome.rejects),
        rejects=rejects,
        bytes_read=outcome.bytes_read,
        batch_size=Distribution.from_values(outcome.batch_sizes),
        batch_ms=Distribution.from_values(outcome.batch_ms),
        seconds=outcome.seconds,
    )


@dataclass(frozen=True)
class _Input:
    """A decoded input, and the items that share it."""

    items: Sequence[Item]
    value: Any
    content_hash: str


class Embedder:
    """Embeds tasks with one model in a pool of threads. It is thread-safe.

    Attributes:
      threads: Number of embedding threads.
    """

    def __init__(self, options: EmbedOptions) -> None:
        self._options, self._model = options, options.load_model()
        self._preprocessing = Preprocessing.parse(options.preprocessing)
        self._storage = Workspace(options.workspace).storage
        self.threads = options.threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="embed")
        self._readers = ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="read")

    def embed(self, tasks: Sequence[Task]) -> Outcome:
        """Embeds the tasks, or copies the records of earlier runs where these hold the embedding.

        Batches and results do not depend on the scheduling of threads.

        Raises:
          JobError: An earlier run's record cannot be read, or the encoder fails.
        """
        start, total = time.monotonic(), Outcome()
        stored = read_records(self._storage, (task.stored_at for task in tasks if task.stored_at), self._readers)
        for task in tasks:
            if task.stored_at:
                total.records += _copies(stored[task.stored_at], task.items)
        fresh = [task for task in tasks if not task.stored_at]
        size = self._model.batch_size
        batches = [fresh[first : first + size] for first in range(0, len(fresh), size)]
        for outcome in self._outcomes(batches):
            total.add(outcome)
        total.seconds = time.monotonic() - start
        return total

    def _outcomes(self, batches: Sequence[Sequence[Task]]) -> Iterator[Outcome]:
        ahead: deque[Future[Outcome]] = deque()
        window = max(2 * self.threads, _READ_AHEAD // self._model.batch_size)
        try:
            for batch in batches:
                while len(ahead) >= window:
                    yield ahead.popleft().result()
                reads = [self._read_ahead(task) for task in batch]
                ahead.append(self._pool.submit(self._embed_batch, batch, reads))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _read_ahead(self, task: Task) -> Future[bytes] | None:
        item = task.items[0]
        if item.reject or item.text is not None or "://" not in item.file:
            return None
        return self._readers.submit(self._read, item)

    def _embed_batch(self, batch: Sequence[Task], reads: Sequence[Future[bytes] | None]) -> Outcome:
        outcome = Outcome()
        inputs: list[_Input] = []
        for task, read in zip(batch, reads, strict=True):
            inputs += self._inputs(task.items, read, outcome)
        if not inputs:
            return outcome
        start = time.perf_counter()
        embeddings = self._model([entry.value for entry in inputs])
        outcome.batch_ms.append((time.perf_counter() - start) * 1e3)
        outcome.batch_sizes.append(len(inputs))
        outcome.embedded += len(inputs)
        for entry, embedding in zip(inputs, embeddings, strict=True):
            outcome.records += [
                EmbeddingRecord(
                    item.id, embedding, item.uri, entry.content_hash, item.metadata, item.version, item.byte_range
                )
                for item in entry.items
            ]
        return outcome

    def _inputs(self, items: Sequence[Item], read: Future[bytes] | None, outcome: Outcome) -> list[_Input]:
        """Reads and decodes the content that the items share, and adds rejects to `outcome`."""
        first = items[0]
        if first.reject:
            outcome.reject(items, RejectedInput(first.reject, first.detail, first.may_pass))
            return []
        try:
            data = read.result() if read else self._read(first)
        except RejectedInput as error:
            if len(items) == 1:
                outcome.reject(items, error)
                return []
            data = None
        if len(items) > 1 and (data is None or not _has_content(data, first.content)):
            # The first file changed or vanished after the corpus was listed, so each item is read separately.
            return [entry for item in items for entry in self._inputs([item], None, outcome)]
        assert data is not None
        outcome.bytes_read += len(data)
        try:
            value = data.decode() if first.text is not None else self._pixels(data)
        except RejectedInput as error:
            outcome.reject(items, error)
            return []
        return [_Input(items, value, sha256_bytes(data))]

    def _read(self, item: Item) -> bytes:
        if item.text is not None:
            return item.text.encode()
        return read_bytes(item.file, self._options.max_bytes, item.offset, item.size)

    def _pixels(self, data: bytes) -> Any:
        return self._preprocessing.pixels(data, self._options.max_pixels)


def _has_content(data: bytes, content: str) -> bool:
    algorithm, _, expected = content.partition(":")
    return (
        algorithm in ("sha256", "md5") and hashlib.new(algorithm, data, usedforsecurity=False).hexdigest() == expected
    )


def _copies(record: EmbeddingRecord, items: Sequence[Item]) -> list[EmbeddingRecord]:
    """Returns a copy of an earlier run's record for each item."""
    return [
        replace(
            record,
            id=item.id,
            uri=item.uri,
            metadata=item.metadata,
            version=item.version,
            byte_range=item.byte_range if item.file else record.byte_range,
        )
        for item in items
    ]
