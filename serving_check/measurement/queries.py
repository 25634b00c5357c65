"""The queries of a check: captions that say what is in an image, items of the corpus, and texts that fit any corpus."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from searchforge.captions.dataset import CaptionedImage, has_captions, load_captions, split_heldout, split_queries
from searchforge.config import Config
from serving_check.measurement.corpus import Corpus

NO_ITEM = -1
"""Target of a query that describes no item of the corpus."""

PROBES = [
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
"""Texts for every corpus, with which latency and the encoder are measured where there are no captions."""


_PROBE_IMAGES = 16


@dataclass(frozen=True)
class Queries:
    """Queries of one kind.

    Attributes:
      values: texts, or paths of image files.
      targets: the row of the item that each query describes or is, or NO_ITEM.
      groups: a number for each image that queries describe; those of one image are not independent.
      seen: queries that the index was tuned with.
    """

    values: list[str]
    targets: list[int]
    groups: list[int]
    seen: int = 0

    def __len__(self) -> int:
        return len(self.values)

    @property
    def with_item(self) -> list[int]:
        """Numbers of the queries that describe an item of the corpus."""
        return [i for i, target in enumerate(self.targets) if target != NO_ITEM]


@dataclass(frozen=True)
class HeldOut:
    """Held-out images with captions: whose captions tuned the index (searchforge.captions.dataset), and the others."""

    unseen: list[CaptionedImage]
    seen: list[CaptionedImage]

    @property
    def uris(self) -> set[str]:
        """Where their images are."""
        return {_uri(image) for image in [*self.unseen, *self.seen]}

    def content(self) -> list[Any]:
        """Everything that decides which queries are drawn, beside the corpus and the settings; as JSON."""
        return [[[image.id, _uri(image), image.captions] for image in part] for part in (self.unseen, self.seen)]


def _uri(image: CaptionedImage) -> str:
    """Returns where an image is, as embedding records name it."""
    return str(image.path.resolve())


def held_out(config: Config, seed: int) -> HeldOut:
    """Returns the held-out images of `config.data`; none without captions.

    Args:
      seed: of the index' own split.
    """
    if not has_captions(config.data):
        return HeldOut([], [])
    split = split_heldout(load_captions(config), config, training=False)
    tuned = {image.id for image in split_queries(split, seed).tuning}
    return HeldOut(
        [image for image in split.heldout if image.id not in tuned],
        [image for image in split.heldout if image.id in tuned],
    )


def caption_queries(images: HeldOut, corpus: Corpus, count: int, seed: int) -> Queries:
    """Returns a seeded sample of captions.

    Captions of items of the corpus come first, and of those the ones that did not tune the index. Captions of other
    images fill up: the index' recall needs no more than a query like a user's.
    """
    parts: dict[tuple[bool, bool], list[tuple[str, int, int]]] = {}  # by whether no item is described, and tuned with
    tagged = [*((image, False) for image in images.unseen), *((image, True) for image in images.seen)]
    for group, (image, tuned) in enumerate(tagged):
        row = corpus.row_of.get(image.id, corpus.row_of_uri.get(_uri(image), NO_ITEM))
        part = parts.setdefault((row == NO_ITEM, tuned), [])
        part += [(caption, row, group) for caption in image.captions]
    chosen: list[tuple[str, int, int]] = []
    seen = 0
    for (_, tuned), pairs in sorted(parts.items()):
        taken = [pairs[i] for i in _sample(len(pairs), count - len(chosen), seed)]
        seen += len(taken) if tuned else 0
        chosen += taken
    return Queries([text for text, _, _ in chosen], [row for _, row, _ in chosen], [g for _, _, g in chosen], seen)


def text_queries(corpus: Corpus, count: int, seed: int) -> Queries:
    """Returns a seeded sample of the texts of a text corpus, which are to find themselves."""
    rows = list(_sample(len(corpus.texts), count, seed))
    return Queries([corpus.texts[row] for row in rows], rows, rows)


def image_queries(corpus: Corpus, count: int, seed: int, folder: Path) -> tuple[Queries, int]:
    """Copies a seeded sample of the corpus' images into `folder`.

    Returns:
      The queries, without images that are gone or changed, and the number of images that were drawn.
    """
    drawn = _sample(len(corpus.ids), count, seed)
    rows = []
    for row in drawn:
        if (data := corpus.read(row)) is not None:
            (folder / str(row)).write_bytes(data)
            rows.append(row)
    return Queries([str(folder / str(row)) for row in rows], rows, rows), len(drawn)


def probe_images(folder: Path) -> list[str]:
    """Draws pictures for every corpus into `folder`, with which the encoder is measured where no image can be read."""
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
