"""Text queries that are like a user's: captions, embedded by the very file that a device runs."""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from indexer.corpus import text_embedder
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
from searchforge.processes import isolated
from searchforge.progress import track
from searchforge.storage.files import atomic_write

_BATCH = 64
"""Texts of a request: less than a second of work, so that all processes end together."""


_HELDOUT_SHARE = 3
"""One held-out caption is asked for so many training captions."""


@dataclass(frozen=True)
class QueryTexts:
    """Captions by what they are for; no image has captions in two of the sets.

    Attributes:
      training: of training images.
      tuning, verification: of held-out images.
    """

    training: tuple[str, ...]
    tuning: tuple[str, ...]
    verification: tuple[str, ...]

    @property
    def id(self) -> str:
        """Hash of all of them."""
        return sha256_bytes(json.dumps([self.training, self.tuning, self.verification]).encode())


@dataclass(frozen=True)
class TextQueries:
    """Embedded `QueryTexts`: training [m, dim], tuning [t, dim] and verification [v, dim] float32."""

    training: npt.NDArray[np.float32]
    tuning: npt.NDArray[np.float32]
    verification: npt.NDArray[np.float32]


def choose_texts(config: Config) -> QueryTexts | None:
    """Returns a sample of the captions of `config.data`, which does not depend on the order that they are read in.

    `index.queries` training captions and a third as many held-out ones, where there are so many; see
    searchforge.captions.dataset.split_queries.

    Returns:
      None where no captions are configured, or none of them can be used or is asked for.

    Raises:
      UsageError: the captions cannot be read.
    """
    if not has_captions(config.data) or not config.index.queries:
        return None
    seed, training = config.index.seed, config.index.queries
    images = split_queries(split_heldout(load_captions(config), config, training=False), seed)
    each = max(1, training // _HELDOUT_SHARE // 2)
    texts = QueryTexts(
        _sample(images.training, training, seed),
        _sample(images.tuning, each, seed),
        _sample(images.verification, each, seed),
    )
    return texts if texts.training or texts.tuning else None


def embed_queries(encoder: Path, texts: QueryTexts, cache: Path) -> TextQueries:
    """Embeds all texts; see `embed_texts`."""
    sets = (texts.training, texts.tuning, texts.verification)
    vectors = embed_texts(encoder, [text for part in sets for text in part], cache)
    return TextQueries(*np.split(vectors, np.cumsum([len(part) for part in sets])[:-1]))


def embed_texts(encoder: Path, texts: Sequence[str], cache: Path) -> npt.NDArray[np.float32]:
    """Embeds texts with the Task Library, in a process for each core.

    Args:
      encoder: the text encoder's TFLite file.
      texts: one or more.
      cache: folder that keeps the result, by the content of the file and the texts.

    Returns:
      [n, dim] float32.

    Raises:
      JobError: the Task Library cannot run the file or refuses a text, or the cache cannot be written.
    """
    # ASCII JSON takes any string, even one that is no valid UTF-8.
    key = sha256_bytes(json.dumps([sha256_file(encoder), *texts]).encode())
    path = cache / f"{key}.npy"
    try:
        known: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        return known
    except (EOFError, OSError, ValueError):  # not there, or damaged
        vectors = _embed(encoder, texts)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror}; make room in the workspace") from error
    return vectors


def _embed(encoder: Path, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    starts = range(0, len(texts), _BATCH)
    processes = min(len(os.sched_getaffinity(0)), len(starts))
    idle: SimpleQueue[isolated.Session] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as sessions, track("captions", len(texts)) as advance:
        for _ in range(processes):
            idle.put(sessions.enter_context(isolated.Session(text_embedder.MODULE)))

        def embed(start: int) -> npt.NDArray[np.float32]:
            output = Path(folder) / f"{start}.npy"
            batch = list(texts[start : start + _BATCH])
            session = idle.get()
            try:
                session.call({"encoder": str(encoder.resolve()), "texts": batch, "output": str(output)})
            finally:
                idle.put(session)
            vectors: npt.NDArray[np.float32] = np.load(output, allow_pickle=False)
            return vectors

        batches = []
        with ThreadPoolExecutor(processes) as pool:
            for vectors in pool.map(embed, starts):
                batches.append(vectors)
                advance(len(vectors))
    return np.concatenate(batches)


def _sample(images: list[CaptionedImage], count: int, seed: int) -> tuple[str, ...]:
    pairs = ((random_rank(seed, image.id, text), text) for image in images for text in image.captions)
    return tuple(text for _, text in heapq.nsmallest(count, pairs))
