"""Text queries for tuning: captions, embedded with the TFLite file that ships to devices."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from searchforge.captions.dataset import (
    CaptionedImage,
    has_captions,
    load_captions,
    random_rank,
    split_heldout,
    split_queries,
)
from searchforge.config import Config
from searchforge.errors import JobError
from searchforge.hashing import sha256_bytes, sha256_file
from searchforge.processes import isolated, task_library
from searchforge.progress import track
from searchforge.storage.files import atomic_write

_BATCH = 64
"""Number of texts per request: less than a second of work, so that all processes finish at about the same time."""

_TRAINING_PER_HELDOUT = 3
"""Number of training captions per held-out caption."""


@dataclass(frozen=True)
class QueryTexts:
    """Captions by purpose; no image has captions in two of the sets.

    Attributes:
      training: Captions of training images.
      tuning: Captions of held-out images.
      verification: Captions of other held-out images.
    """

    training: tuple[str, ...]
    tuning: tuple[str, ...]
    verification: tuple[str, ...]

    @property
    def id(self) -> str:
        """SHA-256 of all captions."""
        return sha256_bytes(json.dumps([self.training, self.tuning, self.verification]).encode())


@dataclass(frozen=True)
class QueryEmbeddings:
    """Embeddings of `QueryTexts`: training [m, dim], tuning [t, dim] and verification [v, dim] float32."""

    training: npt.NDArray[np.float32]
    tuning: npt.NDArray[np.float32]
    verification: npt.NDArray[np.float32]


def choose_texts(config: Config) -> QueryTexts | None:
    """Samples the captions of `config.data`, independent of the order in which they are read.

    The sample has at most `index.queries` training captions and a third as many held-out ones, see
    searchforge.captions.dataset.split_queries.

    Returns:
      None if no captions are configured, `index.queries` is 0, or no caption is usable.

    Raises:
      UsageError: The captions cannot be read.
    """
    if not has_captions(config.data) or not config.index.queries:
        return None
    seed, training = config.index.seed, config.index.queries
    images = split_queries(split_heldout(load_captions(config), config, training=False), seed)
    each = max(1, training // _TRAINING_PER_HELDOUT // 2)
    texts = QueryTexts(
        _sample(images.training, training, seed),
        _sample(images.tuning, each, seed),
        _sample(images.verification, each, seed),
    )
    return texts if texts.training or texts.tuning else None


def embed_queries(encoder: Path, texts: QueryTexts, cache: Path) -> QueryEmbeddings:
    """Embeds all texts with `embed_texts`."""
    sets = (texts.training, texts.tuning, texts.verification)
    vectors = embed_texts(encoder, [text for captions in sets for text in captions], cache)
    return QueryEmbeddings(*np.split(vectors, np.cumsum([len(captions) for captions in sets])[:-1]))


def embed_texts(encoder: Path, texts: Sequence[str], cache: Path) -> npt.NDArray[np.float32]:
    """Embeds texts with the Task Library, in one process per core.

    Args:
      encoder: TFLite file of the text encoder.
      texts: Texts to embed, at least one.
      cache: Folder in which the result is cached by the contents of the file and the texts.

    Returns:
      Embeddings [n, dim] float32.

    Raises:
      JobError: The Task Library cannot run the file or rejects a text, or the cache cannot be written.
    """
    # ASCII JSON can represent any string, even one that is not valid UTF-8.
    key = sha256_bytes(json.dumps([sha256_file(encoder), *texts]).encode())
    path = cache / f"{key}.npy"
    try:
        cached: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        return cached
    except (EOFError, OSError, ValueError):  # missing or damaged
        vectors = _embed(encoder, texts)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror}; free up space in the workspace") from error
    return vectors


def _embed(encoder: Path, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    starts = range(0, len(texts), _BATCH)
    processes = min(len(os.sched_getaffinity(0)), len(starts))
    idle: SimpleQueue[isolated.Session] = SimpleQueue()
    with ExitStack() as sessions, track("embedding captions", len(texts)) as advance:
        for _ in range(processes):
            idle.put(sessions.enter_context(isolated.Session(task_library.MODULE)))

        def embed(start: int) -> npt.NDArray[np.float32]:
            session = idle.get()
            try:
                return task_library.embed_texts(encoder, texts[start : start + _BATCH], session)[0]
            finally:
                idle.put(session)

        batches = []
        with ThreadPoolExecutor(processes) as pool:
            for vectors in pool.map(embed, starts):
                batches.append(vectors)
                advance(len(vectors))
    return np.concatenate(batches)


def _sample(images: list[CaptionedImage], count: int, seed: int) -> tuple[str, ...]:
    """Returns the `count` captions of the smallest random rank, in that order."""
    pairs = ((random_rank(seed, image.id, text), text) for image in images for text in image.captions)
    return tuple(text for _, text in heapq.nsmallest(count, pairs))
