"""The Beam transform that embeds one shard: read, decode, embed in batches, write.

Reading and decoding run in threads ahead of the model, so that neither waits for the other.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared
from google.api_core.exceptions import GoogleAPICallError

from beam_jobs.corpus import Item
from beam_jobs.shards import Shard, read_report, write_shard
from searchforge.encoder import IMAGE_SAVED_MODEL
from searchforge.hashing import sha256_bytes
from searchforge.preprocessing import Preprocessing, RejectedInput
from searchforge.records import EmbeddingRecord
from searchforge.workspace import Workspace

NAMESPACE = "searchforge"
"""Namespace of the job's Beam metrics: `embedded`, and `rejected_<reason>` for every reason."""


@dataclass(frozen=True)
class EmbedOptions:
    """What every worker needs: the workspace's root, the encoder in it, and the folder in it where shards go."""

    workspace: str
    encoder: str
    folder: str
    preprocessing: str
    batch_size: int
    max_bytes: int
    max_pixels: int


@dataclass(frozen=True)
class _Image:
    item: Item
    content_hash: str
    pixels: npt.NDArray[np.uint8]


class _Model:
    """The image encoder's SavedModel; a plain class, so that Beam can share it in a process."""

    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self._loaded = tf.saved_model.load(str(path))
        self._encode = self._loaded.signatures["serving_default"]
        self._constant = tf.constant

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embeds images uint8 [n, h, w, 3] into float32 [n, dim]."""
        result: npt.NDArray[np.float32] = self._encode(images=self._constant(images))["embedding"].numpy()
        return result


class EmbedShard(beam.DoFn):
    """Turns a Shard into its files and yields its report as a dict; a finished shard is only reported."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._shared = Shared()

    def setup(self) -> None:
        workspace = Workspace(self._options.workspace)
        self._storage = workspace.storage
        path = workspace.local("encoders", self._options.encoder) / IMAGE_SAVED_MODEL
        self._model: _Model = self._shared.acquire(lambda: _Model(path), tag=str(path))
        self._preprocessing = Preprocessing.parse(self._options.preprocessing)
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="decode")

    def teardown(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def process(self, shard: Shard) -> Iterator[dict[str, Any]]:
        report = read_report(self._storage, self._options.folder, shard)
        if report is None:
            rejects: list[dict[str, str]] = []
            records = list(self._embed(self._decode(shard.items, rejects)))
            report = write_shard(self._storage, self._options.folder, shard, records, rejects)
        Metrics.counter(NAMESPACE, "embedded").inc(report.shard["count"])
        for reason, count in report.rejected.items():
            Metrics.counter(NAMESPACE, f"rejected_{reason}").inc(count)
        yield asdict(report)

    def _embed(self, images: Iterable[_Image]) -> Iterator[EmbeddingRecord]:
        batch: list[_Image] = []
        for image in images:
            batch.append(image)
            if len(batch) == self._options.batch_size:
                yield from self._embed_batch(batch)
                batch = []
        if batch:
            yield from self._embed_batch(batch)

    def _embed_batch(self, batch: list[_Image]) -> Iterator[EmbeddingRecord]:
        embeddings = self._model(np.stack([image.pixels for image in batch]))
        for image, embedding in zip(batch, embeddings, strict=True):
            yield EmbeddingRecord(image.item.id, embedding, image.item.uri, image.content_hash)

    def _decode(self, items: Iterable[Item], rejects: list[dict[str, str]]) -> Iterator[_Image]:
        """Yields images in order, decoding up to two batches ahead; rejects go to the list."""
        ahead: deque[tuple[Item, Future[_Image]]] = deque()
        waiting = iter(items)
        while True:
            while len(ahead) < 2 * self._options.batch_size:
                item = next(waiting, None)
                if item is None:
                    break
                ahead.append((item, self._threads.submit(self._load, item)))
            if not ahead:
                return
            item, future = ahead.popleft()
            try:
                yield future.result()
            except RejectedInput as error:
                rejects.append({"id": item.id, "uri": item.uri, "reason": error.reason, "detail": error.detail})

    def _load(self, item: Item) -> _Image:
        data = read_bytes(item.uri, self._options.max_bytes)
        return _Image(item, sha256_bytes(data), self._preprocessing.pixels(data, self._options.max_pixels))


def read_bytes(uri: str, max_bytes: int) -> bytes:
    """Reads a file of at most `max_bytes`.

    Raises:
      RejectedInput: it is missing, not a regular file, unreadable or larger.
    """
    if "://" not in uri and not Path(uri).is_file():  # opening a pipe or a device would block
        reason = "not_a_file" if Path(uri).exists() else "missing"
        raise RejectedInput(reason, uri)
    try:
        # As it is: by default, Beam would decompress what has a suffix such as .gz.
        with FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            data: bytes = file.read(max_bytes + 1)
    except (BeamIOError, GoogleAPICallError, OSError, ValueError) as error:
        raise RejectedInput("unreadable", str(error)) from error
    if len(data) > max_bytes:
        raise RejectedInput("too_large", f"more than {max_bytes} bytes")
    return data
