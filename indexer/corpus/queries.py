"""Text queries for tuning: captions or other texts, embedded with the TFLite file that ships to devices."""

from __future__ import annotations

import heapq
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

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
from searchforge.captions.query_texts import SAMPLE, choose_source
from searchforge.config import Config
from searchforge.errors import JobError
from searchforge.hashing import sha256_bytes, sha256_file
from searchforge.processes import isolated, task_library
from searchforge.progress import track
from searchforge.storage.files import atomic_write

logger = logging.getLogger(__name__)

QueryKind = Literal["caption", "query_log", "everyday_text", "item"]

QUERY_KINDS: dict[QueryKind, str] = {
    "caption": "held-out captions",
    "query_log": "queries of the query log",
    "everyday_text": "everyday texts",
    "item": "items of the corpus",
}
"""Kinds of queries that an index is tuned with, the best one first, with the words for them."""

_BATCH = 64
"""Number of texts per request: less than a second of work, so that all processes finish at about the same time."""

_TRAINING_PER_HELDOUT = 3
"""Number of training texts per text for tuning and verification."""


@dataclass(frozen=True)
class QueryTexts:
    """Texts by purpose; none is in two of the sets, and no image has captions in two of them.

    Attributes:
      training: Captions of training images, or other texts.
      tuning: Captions of held-out images, or other texts.
      verification: Captions of other held-out images, or other texts.
    """

    training: tuple[str, ...]
    tuning: tuple[str, ...]
    verification: tuple[str, ...]
    kind: QueryKind = "caption"

    @property
    def id(self) -> str:
        """SHA-256 of all texts."""
        return sha256_bytes(json.dumps([self.training, self.tuning, self.verification]).encode())


@dataclass(frozen=True)
class QueryEmbeddings:
    """Embeddings of `QueryTexts`: training [m, dim], tuning [t, dim] and verification [v, dim] float32."""

    training: npt.NDArray[np.float32]
    tuning: npt.NDArray[np.float32]
    verification: npt.NDArray[np.float32]
    kind: QueryKind = "caption"


def choose_texts(
    config: Config, embed: Callable[[Sequence[str]], npt.NDArray[np.float32]] | None = None
) -> QueryTexts | None:
    """Samples the captions of `config.data`; without captions, its query log; without one, everyday texts.

    The sample has at most `index.queries` training texts and a third as many for tuning and verification. It does not
    depend on the order in which texts are read. Captions are split by image, see
    searchforge.captions.dataset.split_queries; other texts by their hash, see searchforge.captions.query_texts.

    Args:
      embed: Returns the embeddings [n, dim] of texts, to recognise an encoder that embeds other texts than captions
        alike. If None, only captions are considered.

    Returns:
      None if no text is usable, or `index.queries` is 0.

    Raises:
      UsageError: The captions or the query log cannot be read.
    """
    if not config.index.queries:
        return None
    seed, training = config.index.seed, config.index.queries
    each = max(1, training // _TRAINING_PER_HELDOUT // 2)
    if not has_captions(config.data):
        return _choose_other_texts(config, embed, each) if embed else None
    images = split_queries(split_heldout(load_captions(config), config, training=False), seed)
    texts = QueryTexts(
        _sample(images.training, training, seed),
        _sample(images.tuning, each, seed),
        _sample(images.verification, each, seed),
    )
    return texts if texts.training or texts.tuning else None


def _choose_other_texts(
    config: Config, embed: Callable[[Sequence[str]], npt.NDArray[np.float32]], each: int
) -> QueryTexts | None:
    seed = config.index.seed
    source = choose_source(
        config.data,
        lambda source: embed(source.sample("tuning", SAMPLE, seed)),
        lambda reason: logger.warning(f"other queries are used to tune the index: {reason}"),
    )
    if source is None:
        return None
    return QueryTexts(
        source.sample("training", config.index.queries, seed),
        source.sample("tuning", each, seed),
        source.sample("verification", each, seed),
        source.source,
    )


def embed_queries(encoder: Path, texts: QueryTexts, cache: Path) -> QueryEmbeddings:
    """Embeds all texts with `embed_texts`."""
    sets = (texts.training, texts.tuning, texts.verification)
    vectors = embed_texts(encoder, [text for part in sets for text in part], cache)
    training, tuning, verification = np.split(vectors, np.cumsum([len(part) for part in sets])[:-1])
    return QueryEmbeddings(training, tuning, verification, texts.kind)


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
    with ExitStack() as sessions, track("embedding queries", len(texts)) as advance:
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
