"""Chooses the queries of a check: held-out captions, other texts, items of the corpus, and probes for any corpus."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from searchforge.captions.dataset import CaptionedImage, has_captions, load_captions, split_heldout, split_queries
from searchforge.captions.query_texts import SAMPLE, TextsByUse, choose_source
from searchforge.config import Config
from searchforge.errors import JobError
from searchforge.processes import task_library
from serving_check.measurement.corpus import Corpus
from serving_check.schema import QueryKind

logger = logging.getLogger(__name__)

NO_ITEM = -1
"""Row that stands for no item of the corpus."""

PROBE_TEXTS = [
    f"{subject} {place}"
    for subject, place in itertools.product(
        (
            "a dog",
            "two children playing",
            "a red car parked",
            "people at a table with food",
            "a man riding a bicycle",
            "an old woman with a hat",
            "a boat",
            "flowers",
        ),
        ("on a beach", "in the snow", "in front of a house", "at night", "at sunset by a mountain lake", "in a street"),
    )
]
"""Texts that suit any corpus, to measure latency and the encoder without captions."""

_PROBE_IMAGES = 16


@dataclass(frozen=True)
class Queries:
    """Queries of one kind.

    Attributes:
      values: Texts, or paths of image files.
      targets: Row of the item that each query describes or is, or NO_ITEM.
      groups: Number of the image that each query describes; queries of one image are not independent.
      seen_by_tuner: Number of queries that the index was tuned with.
      kind: Where the queries are from.
    """

    values: list[str]
    targets: list[int]
    groups: list[int]
    seen_by_tuner: int = 0
    kind: QueryKind = "text"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def with_item(self) -> list[int]:
        """Positions of the queries that describe an item of the corpus."""
        return [i for i, target in enumerate(self.targets) if target != NO_ITEM]


@dataclass(frozen=True)
class HeldOutImages:
    """Held-out images with captions.

    Attributes:
      unseen: Images whose captions the tuner did not see.
      tuning: Images whose captions tuned the index (searchforge.captions.dataset).
    """

    unseen: list[CaptionedImage]
    tuning: list[CaptionedImage]

    @property
    def uris(self) -> set[str]:
        """URIs of the images."""
        return {_uri(image) for image in [*self.unseen, *self.tuning]}

    def content(self) -> list[Any]:
        """Returns the captions as JSON; together with corpus and settings, they determine the queries."""
        return [[[image.id, _uri(image), image.captions] for image in part] for part in (self.unseen, self.tuning)]


def _uri(image: CaptionedImage) -> str:
    """Returns the URI of an image as embedding records state it."""
    return image.uri if "://" in image.uri else str(Path(image.uri).resolve())


def held_out(config: Config, seed: int) -> HeldOutImages:
    """Returns the held-out images of `config.data`; none if it has no captions.

    Args:
      seed: Seed by which the index chose the captions for tuning.
    """
    if not has_captions(config.data):
        return HeldOutImages([], [])
    split = split_heldout(load_captions(config), config, training=False)
    tuned = {image.id for image in split_queries(split, seed).tuning}
    return HeldOutImages(
        [image for image in split.heldout if image.id not in tuned],
        [image for image in split.heldout if image.id in tuned],
    )


def caption_queries(images: HeldOutImages, corpus: Corpus, count: int, seed: int) -> Queries:
    """Returns a seeded sample of captions.

    Captions of items of the corpus come first, those that did not tune the index before those that did. Captions of
    other images fill up, because recall of the index requires realistic queries only.
    """
    parts: dict[tuple[bool, bool], list[tuple[str, int, int]]] = {}  # by (describes no item, seen by the tuner)
    tagged = [*((image, False) for image in images.unseen), *((image, True) for image in images.tuning)]
    for group, (image, tuned) in enumerate(tagged):
        row = corpus.row_of.get(image.id, corpus.row_of_uri.get(_uri(image), NO_ITEM))
        part = parts.setdefault((row == NO_ITEM, tuned), [])
        part += [(caption, row, group) for caption in image.captions]
    chosen: list[tuple[str, int, int]] = []
    seen_by_tuner = 0
    for (_, tuned), pairs in sorted(parts.items()):
        taken = [pairs[i] for i in _sample(len(pairs), count - len(chosen), seed)]
        seen_by_tuner += len(taken) if tuned else 0
        chosen += taken
    return Queries(
        values=[text for text, _, _ in chosen],
        targets=[row for _, row, _ in chosen],
        groups=[group for _, _, group in chosen],
        seen_by_tuner=seen_by_tuner,
    )


def other_texts(config: Config, encoder: Path) -> TextsByUse | None:
    """Returns the texts to ask with where there are no captions: a query log's, else everyday texts.

    Args:
      encoder: TFLite file of the bundle's text encoder.

    Returns:
      None if the encoder embeds all texts alike, or cannot be run, which the gates report.
    """
    try:
        return choose_source(
            config.data,
            lambda source: task_library.embed_texts(encoder, source.sample("check", SAMPLE, config.check.seed))[0],
            lambda reason: logger.warning(f"other queries are used to measure recall: {reason}"),
        )
    except JobError as error:
        logger.warning(f"images of the corpus are used to measure recall: {error}")
        return None


def text_queries(corpus: Corpus, count: int, seed: int) -> Queries:
    """Returns a seeded sample of the texts of a text corpus, each of which should find itself."""
    rows = list(_sample(len(corpus.texts), count, seed))
    return Queries([corpus.texts[row] for row in rows], rows, rows, kind="corpus_text")


def unrelated_queries(values: list[str], kind: QueryKind = "text") -> Queries:
    """Returns texts or image files as queries that describe no item of the corpus."""
    return Queries(values, [NO_ITEM] * len(values), list(range(len(values))), kind=kind)


def image_queries(corpus: Corpus, count: int, seed: int, folder: Path) -> tuple[Queries, int]:
    """Copies a seeded sample of the corpus' images into `folder`.

    Returns:
      The queries, without images that are missing or have changed, and the size of the sample.
    """
    sample = _sample(len(corpus.ids), count, seed)
    rows = []
    for row in sample:
        if (data := corpus.read(row)) is not None:
            (folder / str(row)).write_bytes(data)
            rows.append(row)
    return Queries([str(folder / str(row)) for row in rows], rows, rows, kind="image"), len(sample)


def probe_images(folder: Path) -> list[str]:
    """Draws images that suit any corpus into `folder`, to measure the encoder if no image can be read."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(_PROBE_IMAGES):
        coarse = random.integers(0, 256, (3 + number % 5, 4 + number % 3, 3), np.uint8)
        path = folder / f"probe-{number}.png"
        Image.fromarray(coarse).resize((256, 192), Image.Resampling.BICUBIC).save(path, compress_level=1)
        paths.append(str(path))
    return paths


def _sample(total: int, count: int, seed: int) -> Sequence[int]:
    if total <= count:
        return range(total)
    chosen: list[int] = np.sort(np.random.default_rng(seed).choice(total, max(0, count), replace=False)).tolist()
    return chosen
