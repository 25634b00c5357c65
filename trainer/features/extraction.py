"""Extracts the features of frozen towers with Ray Data, and caches them by content.

All towers share one pool of workers, because starting a worker takes far longer than loading a tower. Each chunk of
inputs belongs to one tower and becomes one cache file per augmentation. After a kill, only the chunks that were in
flight are recomputed, and later runs on the same inputs find their features in the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge import progress
from searchforge.captions.image_reader import ImageReader, can_read
from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.errors import JobError, PermanentError
from searchforge.image_decoding import RejectedInput
from trainer.data import UNREADABLE_ON_WORKER, Rejection
from trainer.features.augmentations import AUGMENTATIONS, UNAUGMENTED
from trainer.features.cache import FeatureCache, RowLocations
from trainer.ray_cluster import Allocation, failure_may_pass, root_cause
from trainer.towers import TowerSpec, load_image_tower, load_text_tower

CHUNK = {"image": 256, "text": 1024}
"""Maximum number of inputs per chunk, and thus per cache file, by modality."""

BATCH = {"image": 32, "text": 64}
"""Number of inputs per call of the tower, by modality."""

_UNITS = {"image": "image", "text": "caption"}

_LABELS = {"image": "extracting image features", "text": "extracting caption features"}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ExtractionRequest:
    """A set of inputs for one tower.

    Attributes:
      spec: The tower.
      fingerprint: Fingerprint of the tower and its preprocessing; part of the cache folder's name.
      inputs: Paths or URIs of images, or texts, by key (SHA-256 of the content).
      augmentations: Names of one or more image augmentations; texts are never augmented.
      weights: Weights of a fine-tuned tower (see Tower.assign); the fingerprint must include them.
      reader: Reads the images.
    """

    spec: TowerSpec
    fingerprint: str
    inputs: Mapping[str, str]
    augmentations: Sequence[str] = (UNAUGMENTED,)
    weights: Mapping[str, Array] = field(default_factory=dict)
    reader: ImageReader = field(default_factory=ImageReader)

    def names(self, cache: FeatureCache) -> dict[str, str]:
        """Returns the cache folder's name of each augmentation."""
        return {name: cache.name(self.spec.modality, self.fingerprint, name) for name in self.augmentations}

    def passes(self, cache: FeatureCache) -> int:
        """Returns the estimated number of tower passes, one per missing input and augmentation."""
        return sum(len(self.inputs.keys() - cache.keys(name)) for name in self.names(cache).values())


@dataclass(frozen=True)
class Features:
    """Features of the inputs of one request.

    Attributes:
      rows: Row in the feature arrays, by key; rejected inputs are absent.
      by_augmentation: float32 [n, width] by augmentation; see trainer.features.augmentations.
      rejected: Inputs that could not be read.
      computed: Number of inputs that were not fully cached.
      seconds: Time that the workers spent on these inputs, including the loading of the tower, divided by the number of
        workers involved. This is the wall time of a fully busy pool, without its start.
    """

    rows: dict[str, int]
    by_augmentation: dict[str, Array]
    rejected: list[Rejection]
    computed: int
    seconds: float

    @property
    def values(self) -> Array:
        """Features of the first requested augmentation, float32 [n, width]."""
        return next(iter(self.by_augmentation.values()))


def extract(
    requests: Sequence[ExtractionRequest],
    cache: FeatureCache,
    allocation: Allocation,
    chunk: Mapping[str, int] = CHUNK,
) -> list[Features]:
    """Returns the features of each request; call it inside `ray_cluster`.

    No workers are started if everything is cached. Workers decode each image once for all augmentations, on the node
    where the tower runs, so every node must see the images under the same path or be allowed to read their bucket.

    Args:
      allocation: Number of workers, spread over the cluster, and their resources.
      chunk: Maximum number of inputs per chunk, by modality. Small sets use smaller chunks, to keep all workers busy.

    Raises:
      JobError: A tower failed in a worker, or a node does not see an image; a PermanentError if another attempt would
        not change that.
    """
    states = [_RequestState(request, cache) for request in requests]
    jobs = [job for number, state in enumerate(states) for job in state.missing(number)]
    if jobs:
        totals = Counter[str]()
        for job in jobs:
            totals[job.spec.modality] += len(job.items)
        done = Counter[str]()
        with contextlib.closing(_run(jobs, allocation, chunk)) as results:
            # Chunks of one modality may finish before the progress bar of the other one has ended.
            for modality, total in totals.items():
                with progress.track(_LABELS[modality], total, _UNITS[modality]) as advance:
                    advance(done[modality])
                    while done[modality] < total:
                        if (result := next(results, None)) is None:
                            missing = total - done[modality]
                            raise JobError(f"workers returned no features for {missing} inputs; try again")
                        job, chunk_result = result
                        states[job.number].add(job.augmentations, chunk_result)
                        done[job.spec.modality] += chunk_result.count
                        if job.spec.modality == modality:
                            advance(chunk_result.count)
    return [state.features(allocation.workers) for state in states]


@dataclass(frozen=True)
class _TowerJob:
    """Inputs of one request that lack the same augmentations in the cache.

    Attributes:
      number: Index of the request.
      items: Pairs of key and input.
    """

    number: int
    spec: TowerSpec
    fingerprint: str
    augmentations: tuple[str, ...]
    weights: Mapping[str, Array]
    reader: ImageReader
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _ChunkResult:
    """Result of a chunk.

    Attributes:
      keys: Keys of the n inputs with features.
      values: float32 [n, width] by augmentation.
      rejected: Inputs that could not be read.
      seconds: Time that the worker spent on the chunk.
    """

    keys: list[str]
    values: dict[str, Array]
    rejected: list[Rejection]
    seconds: float

    @property
    def count(self) -> int:
        return len(self.keys) + len(self.rejected)


class _RequestState:
    """Tracks which features of one request are cached."""

    def __init__(self, request: ExtractionRequest, cache: FeatureCache) -> None:
        self._request, self._cache = request, cache
        self._names = request.names(cache)
        self._cached: dict[str, RowLocations] = {
            augmentation: cache.index(name) for augmentation, name in self._names.items()
        }
        self._rejected: list[Rejection] = []
        self._computed, self._chunks, self._seconds = 0, 0, 0.0

    def missing(self, number: int) -> list[_TowerJob]:
        """Returns the uncached inputs as jobs, one for each set of missing augmentations."""
        missing: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        request = self._request
        for key, value in request.inputs.items():
            if names := tuple(name for name in request.augmentations if key not in self._cached[name]):
                missing.setdefault(names, []).append((key, value))
        self._computed = sum(map(len, missing.values()))
        return [
            _TowerJob(number, request.spec, request.fingerprint, names, request.weights, request.reader, items)
            for names, items in missing.items()
        ]

    def add(self, augmentations: Sequence[str], result: _ChunkResult) -> None:
        """Writes the features of a finished chunk to the cache."""
        require_visible_on_workers(result.rejected, self._request.inputs)
        if result.keys:
            for name in augmentations:
                self._cached[name] |= self._cache.write(self._names[name], result.keys, result.values[name])
        self._rejected += result.rejected
        self._seconds += result.seconds
        self._chunks += 1

    def features(self, workers: int) -> Features:
        usable = [key for key in self._request.inputs if all(key in rows for rows in self._cached.values())]
        gathered = {name: self._cache.gather(usable, self._cached[name]) for name in self._request.augmentations}
        rows = {key: row for row, key in enumerate(usable)}
        seconds = self._seconds / max(1, min(workers, self._chunks))
        return Features(rows, gathered, self._rejected, self._computed, seconds)


def _run(
    jobs: Sequence[_TowerJob], allocation: Allocation, chunk: Mapping[str, int]
) -> Generator[tuple[_TowerJob, _ChunkResult], None, None]:
    """Yields the results of all jobs, chunk by chunk, roughly in the order of the jobs."""
    import pyarrow
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # its class decides whether another attempt may succeed
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as exceptions
    chunks = []
    for number, job in enumerate(jobs):
        size = max(1, min(chunk[job.spec.modality], -(-len(job.items) // allocation.workers)))
        for i in range(0, len(job.items), size):
            keys, inputs = zip(*job.items[i : i + size], strict=True)
            chunks.append(pyarrow.table({"key": [keys], "value": [inputs], "job": [number]}))
    options = {"num_cpus": allocation.cpus, "num_gpus": allocation.gpus or None}
    descriptions = [dataclasses.replace(job, items=()) for job in jobs]  # the chunks carry the items
    dataset = ray.data.from_arrow(chunks).map_batches(
        Extractor,
        fn_constructor_args=(descriptions, allocation.cpus),
        batch_size=1,  # a row is a chunk
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(allocation.workers, len(chunks))),
        **options,
    )
    try:
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            job, usable = jobs[int(batch["job"][0])], batch["reason"] == ""
            rows = zip(*(batch[column][~usable] for column in ("key", "reason", "detail")), strict=True)
            rejected = [Rejection(*row) for row in rows]
            values = {name: batch[name][usable] for name in job.augmentations}
            yield job, _ChunkResult(list(batch["key"][usable]), values, rejected, float(batch["seconds"][0]))
    except ray.exceptions.RayError as error:
        towers = " or ".join(dict.fromkeys(f"the {job.spec.modality} tower {job.spec.name!r}" for job in jobs))
        kind = JobError if failure_may_pass(error) else PermanentError
        raise kind(f"{towers} failed in a worker: {root_cause(error)}") from error


def require_visible_on_workers(rejected: Sequence[Rejection], inputs: Mapping[str, str]) -> None:
    """Raises JobError if this process can read an image that a worker could not read."""
    for item in rejected:
        if item.reason == UNREADABLE_ON_WORKER and can_read(inputs[item.key]):
            raise JobError(
                f"{item.detail}, a node of the Ray cluster; every node must see the images under the same path, or "
                "have permission to read their bucket"
            )


class Extractor:
    """Runs towers in a Ray Data worker; each tower is loaded on first use.

    Args:
      jobs: The jobs that chunks refer to by number.
      threads: Number of threads for TensorFlow and for decoding.
    """

    def __init__(self, jobs: Sequence[_TowerJob], threads: int) -> None:
        self._jobs, self._threads = jobs, threads
        self._towers: dict[tuple[TowerSpec, str], TowerRunner] = {}

    def __call__(self, chunk: Any) -> dict[str, Array]:
        """Computes the features of a chunk.

        Args:
          chunk: pyarrow table of one row, with lists of n keys (`key`) and n URIs or texts (`value`), and the `job`.

        Returns:
          Columns `key`, object [n], `job`, int [n] with a constant value, those of TowerRunner, and `seconds`, float
          [n] with a constant value.
        """
        start = time.monotonic()
        (row,) = chunk.to_pylist()
        job, count = self._jobs[row["job"]], len(row["key"])
        tower = job.spec, job.fingerprint
        if tower not in self._towers:
            self._towers[tower] = TowerRunner(job.spec, self._threads, job.weights, job.reader)
        columns = self._towers[tower](row["value"], job.augmentations, row["key"])
        seconds = np.full(count, time.monotonic() - start)
        return {"key": np.array(row["key"], object), "job": np.full(count, row["job"]), **columns, "seconds": seconds}


class TowerRunner:
    """Loads a tower and runs it on images or texts.

    Args:
      spec: The tower.
      threads: Number of threads for TensorFlow and for decoding; None keeps TensorFlow's setting.
      weights: Weights of a fine-tuned tower.
      reader: Reads the images.
    """

    def __init__(
        self,
        spec: TowerSpec,
        threads: int | None = None,
        weights: Mapping[str, Array] | None = None,
        reader: ImageReader | None = None,
    ) -> None:
        import tensorflow as tf

        self._spec, self._threads, self._reader = spec, threads, reader or ImageReader()
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        if spec.modality == "image":
            self._image_tower = load_image_tower(spec)
            self._image_tower.assign(weights or {})
            call: Any = self._image_tower.__call__
        else:
            self._text_tower = load_text_tower(spec)
            self._text_tower.assign(weights or {})
            call = self._text_tower.encode if self._text_tower.tokenizer else self._text_tower.__call__
        self._call = tf.function(call, reduce_retracing=True)

    def __call__(
        self, inputs: Sequence[str], augmentations: Sequence[str] = (UNAUGMENTED,), hashes: Sequence[str] = ()
    ) -> dict[str, Array]:
        """Computes features.

        Args:
          inputs: n paths or URIs of images, or n texts.
          augmentations: Names of image augmentations.
          hashes: SHA-256 of each image, if known, by which the reader's cache finds it.

        Returns:
          Columns `reason` and `detail`, object [n] each, empty for inputs with features; and by augmentation,
          float32 [n, width], zeros for rejected inputs.
        """
        if self._spec.modality == "text":
            empty = np.full(len(inputs), "", object)
            return {"reason": empty, "detail": empty, UNAUGMENTED: self._texts(list(inputs))}
        return self._images(inputs, hashes or [""] * len(inputs), augmentations)

    def _images(self, uris: Sequence[str], hashes: Sequence[str], names: Sequence[str]) -> dict[str, Array]:
        preprocessing, width = self._image_tower.preprocessing, self._image_tower.width
        reasons, details = np.full(len(uris), "", object), np.full(len(uris), "", object)
        values = {name: np.zeros((len(uris), width), np.float32) for name in names}
        batch: dict[int, list[Array]] = {}

        def flush() -> None:
            for i, name in enumerate(names):
                pixels = np.stack([augmented[i] for augmented in batch.values()]).astype(np.float32)
                scaled = (pixels - preprocessing.mean) / preprocessing.std
                values[name][list(batch)] = self._call(scaled).numpy()
            batch.clear()

        with ThreadPoolExecutor(self._threads or 1) as pool:  # decodes ahead while the tower runs
            for row, decoded in enumerate(pool.map(functools.partial(self._decode, names), uris, hashes)):
                if isinstance(decoded, tuple):
                    reasons[row], details[row] = decoded
                else:
                    batch[row] = decoded
                if len(batch) == BATCH["image"] or (batch and row == len(uris) - 1):
                    flush()
        return {"reason": reasons, "detail": details, **values}

    def _decode(self, names: Sequence[str], uri: str, sha256: str) -> list[Array] | tuple[str, str]:
        """Returns uint8 pixels for each augmentation, or the reason and the detail of a rejection."""
        try:
            data = self._reader.read(uri, sha256)
        except OSError as error:
            return UNREADABLE_ON_WORKER, f"{uri}: {error.strerror} on {os.uname().nodename}"
        try:
            image = self._image_tower.preprocessing.decode(data, DEFAULT_MAX_PIXELS)
        except RejectedInput as error:
            return error.reason, f"{uri}: {error}"
        return [AUGMENTATIONS[name](image, self._image_tower.preprocessing) for name in names]

    def _texts(self, texts: list[str]) -> Array:
        tower, size = self._text_tower, BATCH["text"]
        values = np.empty((len(texts), tower.width), np.float32)
        if tower.tokenizer is None:
            for i in range(0, len(texts), size):
                values[i : i + size] = self._call(np.array(texts[i : i + size], object)).numpy()
            return values
        tokens = [part.numpy() for part in tower.tokenizer(np.array(texts, object), tower.sequence_length)]
        lengths = tokens[1].sum(1)
        # Batch texts of similar length: most captions are far shorter than the sequence length.
        order = np.argsort(lengths, kind="stable")
        for i in range(0, len(texts), size):
            rows = order[i : i + size]
            values[rows] = self._call(*(part[rows, : lengths[rows[-1]]] for part in tokens)).numpy()
        return values
