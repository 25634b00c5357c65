"""Texts to tune and check an index with where there are no captions: a query log's, and everyday texts."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import InputKind
from searchforge.artifacts.manifest import Modality
from searchforge.captions.dataset import has_captions, random_rank
from searchforge.config import DataConfig
from searchforge.hashing import sha256_bytes
from searchforge.queries.everyday_texts import everyday_texts
from searchforge.queries.query_log import normal_form, read_query_log

logger = logging.getLogger(__name__)

TextSource = Literal["query_log", "everyday_text"]
"""Where texts come from."""

Use = Literal["training", "tuning", "verification", "check"]
"""What a text is used for: to fit the index, to choose its parameters, to measure it, or to check it independently."""

SAMPLE = 200
"""Number of texts whose embeddings decide whether an encoder can use a source; see `degeneracy`."""

_USES: tuple[Use, ...] = ("training", "training", "training", "tuning", "verification", "check")
"""The use of a text by its hash modulo 6."""

_MIN_LOGGED = 200
"""Minimum number of distinct queries of a log; with fewer, a use has too few for a measurement."""

_EVERYDAY_TEXTS = 15_000

_MAX_COSINE = 0.95
"""Mean cosine of two texts at which an encoder does not tell texts apart; below 0.9 for those that can search."""


@dataclass(frozen=True)
class TextsByUse:
    """Texts of one source by use.

    The use of a text depends only on a hash of its normal form, so that no stage asks with texts that are for another
    one, and that a text of a growing log keeps its use.
    """

    source: TextSource
    counts: Mapping[Use, Mapping[str, float]]

    def sample(self, use: Use, size: int, seed: int) -> tuple[str, ...]:
        """Returns at most `size` texts, drawn without replacement with probabilities in proportion to their counts.

        The method is that of Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir".
        """
        ranks = (
            (-math.log(_uniform(random_rank(seed, text))) / count, text) for text, count in self.counts[use].items()
        )
        return tuple(text for _, text in heapq.nsmallest(size, ranks))


def text_sources(data: DataConfig) -> Iterator[TextsByUse | str]:
    """Yields the sources of texts in the order of preference; instead of one that is too small, the reason.

    Raises:
      UsageError: The query log cannot be used.
      JobError: The bucket of the query log cannot be read.
    """
    if data.queries:
        logged = read_query_log(data.queries)
        if len(logged) < _MIN_LOGGED:
            yield f"query log {data.queries} has {len(logged)} distinct queries, fewer than the {_MIN_LOGGED} needed"
        else:
            yield TextsByUse("query_log", _by_use(logged))
    yield TextsByUse("everyday_text", _by_use(dict.fromkeys(everyday_texts(_EVERYDAY_TEXTS), 1.0)))


def degeneracy(embeddings: npt.NDArray[np.float32]) -> str | None:
    """Returns why an encoder's embeddings of distinct texts, [n, dim], cannot serve as queries; None if they can.

    Embeddings of words that the encoder does not know, or of random weights, are nearly equal.
    """
    vectors = np.nan_to_num(embeddings.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    count = len(vectors)
    distinct = len(np.unique(np.round(vectors, 3), axis=0))
    if 2 * distinct < count:
        return f"the encoder embeds {count} of these texts as only {distinct} different vectors"
    cosine = (np.square(vectors.sum(axis=0)).sum() - count) / max(1, count * (count - 1))
    if count > 1 and cosine > _MAX_COSINE:
        return f"the encoder embeds all of these texts alike (mean cosine {cosine:.3f})"
    return None


def uses_texts(data: DataConfig, kinds: Collection[InputKind], modality: Modality) -> bool:
    """Returns whether an index is tuned and checked with one of these sources; logs if a query log is not used.

    Args:
      kinds: Kinds of input that the encoder embeds.
      modality: What the corpus consists of.
    """
    if "text" not in kinds:
        reason = "the encoder does not embed texts"
    elif has_captions(data):
        reason = "there are captions"
    elif modality == "texts":
        reason = "the texts of the corpus are the queries"
    else:
        return True
    if data.queries:
        logger.warning(f"query log {data.queries} is not used: {reason}")
    return False


def choose_source(
    data: DataConfig, embed: Callable[[TextsByUse], npt.NDArray[np.float32]], report: Callable[[str], None]
) -> TextsByUse | None:
    """Returns the first source of texts that is large enough and whose embeddings are not degenerate, or None.

    Args:
      embed: Returns the embeddings [n, dim] of a sample of a source's texts.
      report: Receives a sentence for each source that was passed over.
    """
    for source in text_sources(data):
        fault = source if isinstance(source, str) else degeneracy(embed(source))
        if not fault:
            assert not isinstance(source, str)
            return source
        report(fault)
    return None


def _by_use(counts: Mapping[str, float]) -> dict[Use, dict[str, float]]:
    parts: dict[Use, dict[str, float]] = {use: {} for use in _USES}
    for text, count in counts.items():
        hashed = int(sha256_bytes(normal_form(text).encode())[:8], 16)
        parts[_USES[hashed % len(_USES)]][text] = count
    return parts


def _uniform(digest: bytes) -> float:
    """Returns a number above 0 and at most 1 for a hash."""
    return (int.from_bytes(digest[:6], "big") + 1) / 2**48
