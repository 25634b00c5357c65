"""Features of frozen towers, computed once: by Ray Data over the cluster, and cached by content.

A chunk of inputs becomes one file a view, written under a temporary name and then renamed: a killed run redoes only
the chunks in flight. Files are found by the tower's fingerprint, its preprocessing and the view, rows by the SHA-256
of their input, so that any later training on the same images reuses them, and a changed corpus adds only what is
missing.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from searchforge import progress
from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.errors import JobError
from searchforge.hashing import content_id
from searchforge.preprocessing import RejectedInput
from trainer.cluster import cause, gpus_per_worker, threads_per_worker
from trainer.towers import TowerSpec, load_image_tower, load_text_tower
from trainer.views import PLAIN, VIEWS

CHUNK = {"image": 256, "text": 1024}
"""Inputs a file."""

BATCH = {"image": 32, "text": 64}
"""Inputs a call of the tower."""

UNSEEN = "unseen"
"""Reason of a rejection: the file cannot be opened where the tower runs."""

_DAMAGE = (EOFError, ValueError, KeyError, BadZipFile, zlib.error)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rejected:
    """An input that has no features; reason and detail as of RejectedInput, or UNSEEN."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Features:
    """Features of a set of inputs.

    Attributes:
      rows: row of the values by key; rejected inputs are not in it.
      views: float32 [n, width] by view; see trainer.views. Texts have the plain view only.
      rejected: what could not be read.
      computed: how many inputs were not in the cache.
      seconds: wall time.
    """

    rows: dict[str, int]
    views: dict[str, Array]
    rejected: list[Rejected]
    computed: int
    seconds: float

    @property
    def values(self) -> Array:
        """Float32 [n, width] of the first view that was asked for."""
        return next(iter(self.views.values()))


def extract(
    spec: TowerSpec,
    fingerprint: str,
    inputs: Mapping[str, str],
    cache: Path,
    workers: int,
    threads: int | None = None,
    views: Sequence[str] = (PLAIN,),
    weights: Mapping[str, Array] | None = None,
) -> Features:
    """Returns the features of all inputs; call it inside `cluster.ray_cluster`.

    Images are decoded once for all views, by the worker and so on the node where the tower runs: every node must see
    them under the same path.

    Args:
      spec: the tower.
      fingerprint: of the tower and its preprocessing; names the cache's folders.
      inputs: by key (SHA-256 of the content), the image's path or the text itself.
      cache: folder for all towers' features.
      workers: that run the tower, spread over the cluster.
      threads: of each worker; its share of its node by default.
      views: of the images; at least one.
      weights: of a tuned tower, see Tower.assign; the fingerprint must be theirs.

    Raises:
      JobError: the tower failed in a worker, or a node does not see an image.
    """
    start = time.monotonic()
    folders = {view: cache / content_id([spec.modality, fingerprint, view]) for view in views}
    cached = {view: _index(folder) for view, folder in folders.items()}
    # Inputs that lack the same views go through the tower together.
    missing: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for key, value in inputs.items():
        if lacking := tuple(view for view in views if key not in cached[view]):
            missing.setdefault(lacking, []).append((key, value))
    computed = sum(map(len, missing.values()))
    rejected: list[Rejected] = []
    if missing:
        label = "images through their tower" if spec.modality == "image" else "captions through their tower"
        with progress.track(label, computed) as advance:
            for lacking, items in missing.items():
                for keys, values, bad in _run(spec, lacking, items, workers, threads, weights):
                    _require_seen(bad, inputs)
                    if len(keys):
                        for view in lacking:
                            path = folders[view] / f"{content_id(keys)}.npz"
                            _write(path, keys, values[view])
                            cached[view].update({key: (path, row) for row, key in enumerate(keys)})
                    rejected += bad
                    advance(len(keys) + len(bad))
    usable = [key for key in inputs if all(key in rows for rows in cached.values())]
    gathered = {view: _gather(usable, cached[view]) for view in views}
    rows = {key: row for row, key in enumerate(usable)}
    return Features(rows, gathered, rejected, computed, time.monotonic() - start)


def _run(
    spec: TowerSpec,
    views: Sequence[str],
    items: Sequence[tuple[str, str]],
    workers: int,
    threads: int | None = None,
    weights: Mapping[str, Array] | None = None,
) -> Iterator[tuple[list[str], dict[str, Array], list[Rejected]]]:
    """Yields (keys, values by view, rejected) of the finished chunks in any order."""
    import pyarrow
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what concerns the user arrives as an exception
    # Small sets still keep every worker busy.
    size = max(1, min(CHUNK[spec.modality], -(-len(items) // workers)))
    chunks = [
        pyarrow.table(dict(zip(("key", "value"), zip(*items[i : i + size], strict=True), strict=True)))
        for i in range(0, len(items), size)
    ]
    workers = min(workers, len(chunks))
    options = {"num_cpus": 1, "num_gpus": gpus_per_worker(workers) or None}
    dataset = ray.data.from_arrow(chunks).map_batches(
        Extractor,
        fn_constructor_args=(spec, views, threads or threads_per_worker(workers), weights),
        batch_size=None,  # a chunk as it is
        compute=ray.data.ActorPoolStrategy(size=workers),
        **options,
    )
    try:
        for chunk in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            good = chunk["reason"] == ""
            bad = zip(*(chunk[name][~good] for name in ("key", "reason", "detail")), strict=True)
            yield list(chunk["key"][good]), {view: chunk[view][good] for view in views}, [Rejected(*b) for b in bad]
    except ray.exceptions.RayError as error:
        raise JobError(f"the {spec.modality} tower {spec.name!r} failed in a worker: {cause(error)}") from error


def _require_seen(rejected: Sequence[Rejected], inputs: Mapping[str, str]) -> None:
    """What is there for this process but not for a worker is no fault of the image."""
    for item in rejected:
        if item.reason == UNSEEN and os.access(inputs[item.key], os.R_OK):
            raise JobError(
                f"{item.detail}, a node of the Ray cluster; every node must see the images under the same path"
            )


class Extractor:
    """Runs a tower in a Ray Data worker. The tower is loaded with the first chunk.

    Args:
      spec: the tower.
      views: of images.
      threads: that TensorFlow and decoding may use; None leaves TensorFlow's setting as it is.
      weights: of a tuned tower.
    """

    def __init__(
        self,
        spec: TowerSpec,
        views: Sequence[str] = (PLAIN,),
        threads: int | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        self._spec, self._views, self._threads, self._weights = spec, tuple(views), threads, weights or {}
        self._call: Any = None

    def __call__(self, chunk: Mapping[str, Array]) -> dict[str, Array]:
        """Computes the features of a chunk.

        Args:
          chunk: `key`, and `value`: paths or texts; object [n] each.

        Returns:
          `key`, `reason` and `detail`, object [n] each, the latter two empty where there are features; by view,
          float32 [n, width], zeros for rejected inputs.
        """
        if self._call is None:
            self._load()
        keys, values = chunk["key"], list(chunk["value"])
        if self._spec.modality == "text":
            nothing = np.full(len(keys), "", object)
            return {"key": keys, "reason": nothing, "detail": nothing, PLAIN: self._texts(values)}
        return {"key": keys, **self._images(values)}

    def _load(self) -> None:
        import tensorflow as tf

        if self._threads:
            tf.config.threading.set_intra_op_parallelism_threads(self._threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        if self._spec.modality == "image":
            self._image_tower = load_image_tower(self._spec)
            self._image_tower.assign(self._weights)
            call: Any = self._image_tower.__call__
        else:
            self._text_tower = load_text_tower(self._spec)
            self._text_tower.assign(self._weights)
            call = self._text_tower.encode if self._text_tower.tokenizer else self._text_tower.__call__
        self._call = tf.function(call, reduce_retracing=True)

    def _images(self, paths: Sequence[str]) -> dict[str, Array]:
        preprocessing, width = self._image_tower.preprocessing, self._image_tower.width
        reasons, details = np.full(len(paths), "", object), np.full(len(paths), "", object)
        values = {view: np.zeros((len(paths), width), np.float32) for view in self._views}
        batch: dict[int, list[Array]] = {}

        def flush() -> None:
            for i, view in enumerate(self._views):
                pixels = np.stack([views[i] for views in batch.values()]).astype(np.float32)
                scaled = (pixels - preprocessing.mean) / np.float32(preprocessing.std)
                values[view][list(batch)] = self._call(scaled).numpy()
            batch.clear()

        with ThreadPoolExecutor(self._threads or 1) as pool:  # decodes ahead while the tower runs
            for row, found in enumerate(pool.map(self._decode, paths)):
                if isinstance(found, tuple):
                    reasons[row], details[row] = found
                else:
                    batch[row] = found
                if len(batch) == BATCH["image"] or (batch and row == len(paths) - 1):
                    flush()
        return {"reason": reasons, "detail": details, **values}

    def _decode(self, path: str) -> list[Array] | tuple[str, str]:
        """Returns uint8 pixels of each view, or reason and detail of the rejection."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            return UNSEEN, f"{path}: {error.strerror} on {os.uname().nodename}"
        try:
            image = self._image_tower.preprocessing.decode(data, DEFAULT_MAX_PIXELS)
        except RejectedInput as error:
            return error.reason, f"{path}: {error}"
        return [VIEWS[view](image, self._image_tower.preprocessing) for view in self._views]

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


def _write(path: Path, keys: Sequence[str], values: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, keys=np.array(keys, "S64"), values=values)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise JobError(f"features cannot be written to {path.parent}: {error.strerror}") from error


def _index(folder: Path) -> dict[str, tuple[Path, int]]:
    """Returns file and row of every cached key; a damaged file counts as absent and is computed again."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                found.update({key.decode(): (path, row) for row, key in enumerate(file["keys"])})
                file["values"]  # damage shows here and not when the rows are needed
        except _DAMAGE:
            path.unlink(missing_ok=True)
        except OSError:
            continue
    return found


def _gather(keys: Sequence[str], cached: Mapping[str, tuple[Path, int]]) -> Array:
    """Returns the rows of all keys, in their order, reading each file once."""
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for position, key in enumerate(keys):
        path, row = cached[key]
        by_file.setdefault(path, []).append((position, row))
    gathered = np.zeros((len(keys), 0), np.float32)
    for path, pairs in by_file.items():
        os.utime(path)  # says that it is used, for whoever tidies up
        with np.load(path, allow_pickle=False) as file:
            values = file["values"]
        if gathered.shape[1] == 0:
            gathered = np.empty((len(keys), values.shape[1]), np.float32)
        positions, rows = zip(*pairs, strict=True)
        gathered[list(positions)] = values[list(rows)]
    return gathered
