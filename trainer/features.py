"""Features of frozen towers, computed once: in parallel over Ray, and cached by content.

A chunk of inputs becomes one file, written under a temporary name and then renamed: a killed run redoes only the
chunks in flight. Files are found by the tower's fingerprint and preprocessing, rows by the SHA-256 of their input,
so that any later training on the same images reuses them, and a changed corpus adds only what is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from searchforge import progress
from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.hashing import content_id
from searchforge.preprocessing import RejectedInput
from trainer.towers import TowerSpec, load_image_tower, load_text_tower

CHUNK = {"image": 256, "text": 1024}
"""Inputs a file."""

BATCH = {"image": 32, "text": 64}
"""Inputs a call of the tower."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rejected:
    """An input that has no features; reason and detail as of RejectedInput."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Features:
    """Features of a set of inputs.

    Attributes:
      rows: row of `values` by key; rejected inputs are not in it.
      values: float32 [n, width].
      rejected: what could not be read.
      computed: how many inputs were not in the cache.
      seconds: wall time.
    """

    rows: dict[str, int]
    values: Array
    rejected: list[Rejected]
    computed: int
    seconds: float


def extract(
    spec: TowerSpec, fingerprint: str, inputs: dict[str, str], cache: Path, workers: int, threads: int
) -> Features:
    """Returns the features of all inputs; call it inside `cluster.ray_cluster`.

    Args:
      spec: the tower.
      fingerprint: of the tower and its preprocessing; names the cache's folder.
      inputs: by key (SHA-256 of the content), the image's path or the text itself.
      cache: folder for all towers' features.
      workers: actors that run the tower.
      threads: of each actor.
    """
    start = time.monotonic()
    folder = cache / content_id([spec.modality, fingerprint])
    folder.mkdir(parents=True, exist_ok=True)
    cached = _index(folder)
    missing = [(key, value) for key, value in inputs.items() if key not in cached]
    rejected: list[Rejected] = []
    if missing:
        size = CHUNK[spec.modality]
        # Small sets still keep every worker busy.
        size = max(1, min(size, -(-len(missing) // workers)))
        chunks = [missing[i : i + size] for i in range(0, len(missing), size)]
        label = "images through their tower" if spec.modality == "image" else "captions through their tower"
        with progress.track(label, len(missing)) as advance:
            for keys, values, bad in _run(spec, chunks, workers, threads):
                if len(keys):
                    _write(folder / f"{content_id(keys)}.npz", keys, values)
                rejected += bad
                advance(len(keys) + len(bad))
        cached = _index(folder)
    rows, values = _gather(inputs, cached)
    return Features(rows, values, rejected, len(missing), time.monotonic() - start)


def _run(
    spec: TowerSpec, chunks: list[list[tuple[str, str]]], workers: int, threads: int
) -> Iterator[tuple[list[str], Array, list[Rejected]]]:
    """Yields the finished chunks in any order."""
    import ray
    from ray.util import ActorPool

    actor = ray.remote(num_cpus=1)(Extractor)
    actors = [actor.remote(spec, threads) for _ in range(min(workers, len(chunks)))]
    try:
        yield from ActorPool(actors).map_unordered(lambda actor, chunk: actor.extract.remote(chunk), chunks)
    finally:
        for running in actors:
            ray.kill(running)


class Extractor:
    """Runs a tower in a Ray actor.

    Args:
      spec: the tower.
      threads: that TensorFlow may use; None leaves its setting as it is.
    """

    def __init__(self, spec: TowerSpec, threads: int | None = None) -> None:
        import tensorflow as tf

        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        self._spec = spec
        if spec.modality == "image":
            self._image_tower = load_image_tower(spec)
            self._call = tf.function(self._image_tower.__call__, reduce_retracing=True)
        else:
            self._text_tower = load_text_tower(spec)
            encode = self._text_tower.encode if self._text_tower.tokenizer else self._text_tower.__call__
            self._call = tf.function(encode, reduce_retracing=True)

    def extract(self, inputs: Sequence[tuple[str, str]]) -> tuple[list[str], Array, list[Rejected]]:
        """Returns (keys, float32 [n, width] features, rejected) of the inputs, which are keys and paths or texts."""
        if self._spec.modality == "image":
            return self._images(inputs)
        values = self._texts([text for _, text in inputs])
        return [key for key, _ in inputs], values, []

    def _images(self, inputs: Sequence[tuple[str, str]]) -> tuple[list[str], Array, list[Rejected]]:
        preprocessing = self._image_tower.preprocessing
        keys, pixels, rejected = [], [], []
        for key, path in inputs:
            try:
                pixels.append(preprocessing.pixels(Path(path).read_bytes(), DEFAULT_MAX_PIXELS))
                keys.append(key)
            except (RejectedInput, OSError) as error:
                reason = error.reason if isinstance(error, RejectedInput) else "unreadable"
                rejected.append(Rejected(key, reason, f"{path}: {error}"))
        found = []
        for i in range(0, len(pixels), BATCH["image"]):
            batch = np.stack(pixels[i : i + BATCH["image"]]).astype(np.float32)
            found.append(self._call((batch - preprocessing.mean) / np.float32(preprocessing.std)).numpy())
        values = np.concatenate(found) if found else np.zeros((0, self._image_tower.width), np.float32)
        return keys, values, rejected

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


def _write(path: Path, keys: list[str], values: Array) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, keys=np.array(keys, "S64"), values=values)
    temporary.replace(path)


def _index(folder: Path) -> dict[str, tuple[Path, int]]:
    """Returns file and row of every cached key; a damaged file counts as absent and is computed again."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                found.update({key.decode(): (path, row) for row, key in enumerate(file["keys"])})
        except (OSError, ValueError, KeyError, BadZipFile):
            path.unlink()
    return found


def _gather(keys: Iterable[str], cached: dict[str, tuple[Path, int]]) -> tuple[dict[str, int], Array]:
    by_file: dict[Path, list[tuple[str, int]]] = {}
    for key in keys:
        if key in cached:
            path, row = cached[key]
            by_file.setdefault(path, []).append((key, row))
    rows: dict[str, int] = {}
    parts = []
    for path, wanted in sorted(by_file.items()):
        with np.load(path, allow_pickle=False) as file:
            parts.append(file["values"][[row for _, row in wanted]])
        rows.update({key: len(rows) + i for i, (key, _) in enumerate(wanted)})
    return rows, np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
