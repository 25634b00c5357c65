"""Features of frozen towers, computed once: by Ray Data over the cluster, and cached by content.

All towers run in one pass, in one pool of workers: starting a worker takes far longer than loading a tower. A chunk of
inputs names its tower and its views, and becomes one file a view in the cache: a killed run redoes only the chunks in
flight, and any later training on the same inputs finds them.
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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.console import progress
from searchforge.errors import JobError
from searchforge.preprocessing import RejectedInput
from trainer.data import UNREADABLE_ON_WORKER, Rejection
from trainer.features.augmentations import AUGMENTATIONS, UNAUGMENTED
from trainer.features.cache import FeatureCache, RowLocations
from trainer.ray_cluster import gpus_per_worker, root_cause, threads_per_worker
from trainer.towers import TowerSpec, load_image_tower, load_text_tower

CHUNK = {"image": 256, "text": 1024}
"""Most inputs of a chunk, and so of a file, by modality."""

BATCH = {"image": 32, "text": 64}
"""Inputs a call of the tower."""

_LABELS = {"image": "images through their tower", "text": "captions through their tower"}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ExtractionRequest:
    """Inputs of one tower whose features are wanted.

    Attributes:
      spec: the tower.
      fingerprint: of the tower and its preprocessing; names the cache's folders.
      inputs: by key (SHA-256 of the content), the image's path or the text itself.
      views: of the images; at least one. Texts have the plain view only.
      weights: of a tuned tower, see Tower.assign; the fingerprint must be theirs.
    """

    spec: TowerSpec
    fingerprint: str
    inputs: Mapping[str, str]
    views: Sequence[str] = (UNAUGMENTED,)
    weights: Mapping[str, Array] = field(default_factory=dict)

    def names(self, cache: FeatureCache) -> dict[str, str]:
        """Returns the name in the cache of each view."""
        return {view: cache.name(self.spec.modality, self.fingerprint, view) for view in self.views}

    def passes(self, cache: FeatureCache) -> int:
        """Returns how many inputs have to go through the tower, each view for itself; an estimate."""
        return sum(len(self.inputs.keys() - cache.keys(name)) for name in self.names(cache).values())


@dataclass(frozen=True)
class Features:
    """Features of a set of inputs.

    Attributes:
      rows: row of the values by key; rejected inputs are not in it.
      views: float32 [n, width] by view; see trainer.features.augmentations. Texts have the plain view only.
      rejected: what could not be read.
      computed: how many inputs were not in the cache.
      seconds: what the workers spent on these inputs, loading the tower included, divided by the number of workers
        that had some: the wall time of workers that are all busy, without the start of their pool.
    """

    rows: dict[str, int]
    views: dict[str, Array]
    rejected: list[Rejection]
    computed: int
    seconds: float

    @property
    def values(self) -> Array:
        """Float32 [n, width] of the first view that was asked for."""
        return next(iter(self.views.values()))


def extract(
    wanted: Sequence[ExtractionRequest],
    cache: FeatureCache,
    workers: int,
    threads: int | None = None,
    chunk: Mapping[str, int] = CHUNK,
) -> list[Features]:
    """Returns the features of all inputs, in the order of `wanted`; call it inside `cluster.ray_cluster`.

    Where everything is cached, nothing is started. Images are decoded once for all views, by the worker and so on the
    node where the tower runs: every node must see them under the same path.

    Args:
      workers: that run the towers, spread over the cluster.
      threads: of each worker; its share of its node by default.
      chunk: most inputs of a chunk, by modality. Small sets are cut smaller, so that all workers have some.

    Raises:
      JobError: a tower failed in a worker, or a node does not see an image.
    """
    sets = [_RequestState(one, cache) for one in wanted]
    jobs = [job for number, one in enumerate(sets) for job in one.missing(number)]
    if jobs:
        totals = Counter[str]()
        for job in jobs:
            totals[job.spec.modality] += len(job.items)
        done = Counter[str]()
        with contextlib.closing(_run(jobs, workers, threads, chunk)) as finished:
            # A kind may begin before the one before it has ended; its progress is shown from then on.
            for modality, total in totals.items():
                with progress.track(_LABELS[modality], total) as advance:
                    advance(done[modality])
                    while done[modality] < total:
                        if (chunk_done := next(finished, None)) is None:
                            raise JobError(f"features of {total - done[modality]} inputs did not come; try again")
                        job, part = chunk_done
                        sets[job.number].add(job.views, part)
                        done[job.spec.modality] += part.count
                        if job.spec.modality == modality:
                            advance(part.count)
    return [one.features(workers) for one in sets]


@dataclass(frozen=True)
class _TowerJob:
    """Inputs that lack the same views.

    Attributes:
      number: of the set that they belong to.
      items: pairs of key and value.
    """

    number: int
    spec: TowerSpec
    fingerprint: str
    views: tuple[str, ...]
    weights: Mapping[str, Array]
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _ChunkResult:
    """A finished chunk: its keys with float32 [n, width] by view, what was rejected, and a worker's seconds."""

    keys: list[str]
    values: dict[str, Array]
    rejected: list[Rejection]
    seconds: float

    @property
    def count(self) -> int:
        return len(self.keys) + len(self.rejected)


class _RequestState:
    """What is known of the features of one `ExtractionRequest`."""

    def __init__(self, wanted: ExtractionRequest, cache: FeatureCache) -> None:
        self._wanted, self._cache = wanted, cache
        self._names = wanted.names(cache)
        self._cached: dict[str, RowLocations] = {view: cache.index(name) for view, name in self._names.items()}
        self._rejected: list[Rejection] = []
        self._computed, self._parts, self._seconds = 0, 0, 0.0

    def missing(self, number: int) -> list[_TowerJob]:
        """Returns the inputs that are not cached; those that lack the same views go through the tower together."""
        lacking: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        wanted = self._wanted
        for key, value in wanted.inputs.items():
            if views := tuple(view for view in wanted.views if key not in self._cached[view]):
                lacking.setdefault(views, []).append((key, value))
        self._computed = sum(map(len, lacking.values()))
        return [
            _TowerJob(number, wanted.spec, wanted.fingerprint, views, wanted.weights, items)
            for views, items in lacking.items()
        ]

    def add(self, views: Sequence[str], part: _ChunkResult) -> None:
        """Writes a finished chunk."""
        require_visible_on_workers(part.rejected, self._wanted.inputs)
        if part.keys:
            for view in views:
                self._cached[view] |= self._cache.write(self._names[view], part.keys, part.values[view])
        self._rejected += part.rejected
        self._seconds += part.seconds
        self._parts += 1

    def features(self, workers: int) -> Features:
        usable = [key for key in self._wanted.inputs if all(key in rows for rows in self._cached.values())]
        gathered = {view: self._cache.gather(usable, self._cached[view]) for view in self._wanted.views}
        rows = {key: row for row, key in enumerate(usable)}
        seconds = self._seconds / max(1, min(workers, self._parts))
        return Features(rows, gathered, self._rejected, self._computed, seconds)


def _run(
    jobs: Sequence[_TowerJob], workers: int, threads: int | None, chunk: Mapping[str, int]
) -> Generator[tuple[_TowerJob, _ChunkResult], None, None]:
    """Yields the finished chunks of all jobs, roughly in the order of the jobs."""
    import pyarrow
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what concerns the user arrives as an exception
    chunks = []
    for number, job in enumerate(jobs):
        size = max(1, min(chunk[job.spec.modality], -(-len(job.items) // workers)))
        for i in range(0, len(job.items), size):
            keys, inputs = zip(*job.items[i : i + size], strict=True)
            chunks.append(pyarrow.table({"key": keys, "value": inputs, "job": [number] * len(keys)}))
    workers = min(workers, len(chunks))
    options = {"num_cpus": 1, "num_gpus": gpus_per_worker(workers) or None}
    plain = [dataclasses.replace(job, items=()) for job in jobs]  # the items travel in the chunks
    dataset = ray.data.from_arrow(chunks).map_batches(
        Extractor,
        fn_constructor_args=(plain, threads or threads_per_worker(workers)),
        batch_size=None,  # a chunk as it is
        compute=ray.data.ActorPoolStrategy(size=workers),
        **options,
    )
    try:
        for found in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            job, good = jobs[int(found["job"][0])], found["reason"] == ""
            bad = zip(*(found[name][~good] for name in ("key", "reason", "detail")), strict=True)
            values = {view: found[view][good] for view in job.views}
            yield (
                job,
                _ChunkResult(
                    list(found["key"][good]), values, [Rejection(*b) for b in bad], float(found["seconds"][0])
                ),
            )
    except ray.exceptions.RayError as error:
        towers = " or ".join(dict.fromkeys(f"the {job.spec.modality} tower {job.spec.name!r}" for job in jobs))
        raise JobError(f"{towers} failed in a worker: {root_cause(error)}") from error


def require_visible_on_workers(rejected: Sequence[Rejection], inputs: Mapping[str, str]) -> None:
    """Raises JobError where a worker did not see a file that this process sees: no fault of the image."""
    for item in rejected:
        if item.reason == UNREADABLE_ON_WORKER and os.access(inputs[item.key], os.R_OK):
            raise JobError(
                f"{item.detail}, a node of the Ray cluster; every node must see the images under the same path"
            )


class Extractor:
    """Runs towers in a Ray Data worker. A tower is loaded with the first chunk that needs it.

    Args:
      jobs: what chunks refer to by their number.
      threads: that TensorFlow and decoding may use.
    """

    def __init__(self, jobs: Sequence[_TowerJob], threads: int) -> None:
        self._jobs, self._threads = jobs, threads
        self._towers: dict[tuple[TowerSpec, str], TowerRunner] = {}

    def __call__(self, chunk: Mapping[str, Array]) -> dict[str, Array]:
        """Computes the features of a chunk.

        Args:
          chunk: `key`, `value` (paths or texts), object [n] each, and `job`, int [n], the same in all rows.

        Returns:
          `key`, `job`, what TowerRunner returns, and `seconds` that this took, float [n], the same in all rows.
        """
        start = time.monotonic()
        job, rows = self._jobs[int(chunk["job"][0])], len(chunk["key"])
        tower = job.spec, job.fingerprint
        if tower not in self._towers:
            self._towers[tower] = TowerRunner(job.spec, self._threads, job.weights)
        found = self._towers[tower](list(chunk["value"]), job.views)
        return {"key": chunk["key"], "job": chunk["job"], **found, "seconds": np.full(rows, time.monotonic() - start)}


class TowerRunner:
    """A loaded tower that takes paths of images, or texts.

    Args:
      spec: the tower.
      threads: that TensorFlow and decoding may use; None leaves TensorFlow's setting as it is.
      weights: of a tuned tower.
    """

    def __init__(self, spec: TowerSpec, threads: int | None = None, weights: Mapping[str, Array] | None = None) -> None:
        import tensorflow as tf

        self._spec, self._threads = spec, threads
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

    def __call__(self, inputs: Sequence[str], views: Sequence[str] = (UNAUGMENTED,)) -> dict[str, Array]:
        """Computes features.

        Args:
          inputs: n paths or texts.
          views: of images.

        Returns:
          `reason` and `detail`, object [n] each, empty where there are features; by view, float32 [n, width], zeros for
          rejected inputs.
        """
        if self._spec.modality == "text":
            nothing = np.full(len(inputs), "", object)
            return {"reason": nothing, "detail": nothing, UNAUGMENTED: self._texts(list(inputs))}
        return self._images(inputs, views)

    def _images(self, paths: Sequence[str], names: Sequence[str]) -> dict[str, Array]:
        preprocessing, width = self._image_tower.preprocessing, self._image_tower.width
        reasons, details = np.full(len(paths), "", object), np.full(len(paths), "", object)
        values = {view: np.zeros((len(paths), width), np.float32) for view in names}
        batch: dict[int, list[Array]] = {}

        def flush() -> None:
            for i, view in enumerate(names):
                pixels = np.stack([views[i] for views in batch.values()]).astype(np.float32)
                scaled = (pixels - preprocessing.mean) / np.float32(preprocessing.std)
                values[view][list(batch)] = self._call(scaled).numpy()
            batch.clear()

        with ThreadPoolExecutor(self._threads or 1) as pool:  # decodes ahead while the tower runs
            for row, found in enumerate(pool.map(functools.partial(self._decode, names), paths)):
                if isinstance(found, tuple):
                    reasons[row], details[row] = found
                else:
                    batch[row] = found
                if len(batch) == BATCH["image"] or (batch and row == len(paths) - 1):
                    flush()
        return {"reason": reasons, "detail": details, **values}

    def _decode(self, names: Sequence[str], path: str) -> list[Array] | tuple[str, str]:
        """Returns uint8 pixels of each view, or reason and detail of the rejection."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            return UNREADABLE_ON_WORKER, f"{path}: {error.strerror} on {os.uname().nodename}"
        try:
            image = self._image_tower.preprocessing.decode(data, DEFAULT_MAX_PIXELS)
        except RejectedInput as error:
            return error.reason, f"{path}: {error}"
        return [AUGMENTATIONS[view](image, self._image_tower.preprocessing) for view in names]

    def _texts(self, texts: list[str]) -> Array:
        tower, size = self._text_tower, BATCH["text"]
        values = np.empty((len(texts), tower.width), np.float32)
        if tower.tokenizer is None:
            for i in range(0, len(texts), size):
                values[i : i + size] = self._call(np.array(texts[i : i + size], object)).numpy()
            return values
        tokens = [part.numpy() for part in tower.tokenizer(np.array(texts, object), tower.sequence_length)]
        lengths = tokens[1].sum(1)
        # Texts of like length together: most captions are far shorter than the sequence.
        order = np.argsort(lengths, kind="stable")
        for i in range(0, len(texts), size):
            rows = order[i : i + size]
            values[rows] = self._call(*(part[rows, : lengths[rows[-1]]] for part in tokens)).numpy()
        return values
