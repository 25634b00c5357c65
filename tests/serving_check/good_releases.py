"""Valid searchers of every kind that the indexer builds, all of which must pass the check."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.build import build_index
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import MARKERS
from searchforge.config import Config, load_config
from searchforge.hashing import sha256_file
from tests.indexer.tiny_corpus import IMAGES, TinyCorpus, commit_embeddings, commit_on, make_corpus, tiny_encoder
from tests.indexer.tiny_encoder import random_images, save_images, unit

Pixels = np.ndarray
Metadata = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """A searcher and the configuration of its check."""

    config: Config
    searcher: str


class Corpora:
    """Tiny corpora that several kinds of releases share, so that each is made once."""

    def __init__(self, root: Path) -> None:
        """Makes the corpora in the folder `root`."""
        self._root = root
        self._made: dict[int, TinyCorpus] = {}

    def corpus(self, count: int = IMAGES, **settings: Any) -> TinyCorpus:
        """Returns the corpus of `count` captioned images; the other arguments are those of `make_corpus`.

        Releases of the same corpus do not share a quantizer: `index.reuse_from` is `none`.
        """
        if count not in self._made:
            self._made[count] = make_corpus(self._root / f"of-{count}", count)
        made = self._made[count]
        data = {"captions": made.config.data.captions, "images": made.config.data.images}
        values = {"workspace": made.workspace.root, "data": data, "index.reuse_from": "none"}
        config = load_config(None, {**values, **{key.replace("__", "."): value for key, value in settings.items()}})
        return dataclasses.replace(made, config=config)

    def folder(self, name: str) -> Path:
        """Returns a folder for a single kind of release."""
        return self._root / name


Kind = Callable[[Corpora], Release]

_kinds: dict[str, Kind] = {}


def kinds() -> dict[str, Kind]:
    """Returns the functions that build each kind, by name."""
    return dict(_kinds)


def _kind(build: Kind) -> Kind:
    _kinds[build.__name__] = build
    return build


def _build(corpus: TinyCorpus, embeddings: str = "corpus") -> Release:
    return Release(corpus.config, build_index(corpus.config, embeddings)["id"])


def _of_settings(name: str, recall: float | None, count: int = IMAGES, **settings: Any) -> None:
    """Adds a kind of release of captioned images with settings of the index.

    Args:
      recall: Minimum recall@10 of the check.
    """
    index = {f"index__{key}": value for key, value in settings.items()}

    def build(corpora: Corpora) -> Release:
        return _build(corpora.corpus(count, check__min_recall_at_10=recall, **index))

    build.__name__ = name
    _kind(build)


_of_settings("tuned_settings", 0.9)
_of_settings("large_codes_and_every_partition_searched", 0.98, code_bytes=16, partitions=20, partitions_searched=20)
_of_settings("codes_of_one_byte", 0.05, code_bytes=1, partitions=4, recall_at_10=None)
_of_settings("codes_of_two_bytes", 0.1, code_bytes=2, partitions=7, partitions_searched=3, recall_at_10=None)
_of_settings("one_partition", 0.9, partitions=1)
_of_settings("too_many_partitions_for_the_corpus", 0.1, partitions=150, partitions_searched=15, recall_at_10=None)
_of_settings("one_partition_searched", 0.05, code_bytes=8, partitions=8, partitions_searched=1, recall_at_10=None)
_of_settings("look_ups_of_16_bits", 0.9, lut_type="int16")
_of_settings("look_ups_of_8_bits", 0.5, lut_type="int8", code_bytes=8, recall_at_10=None)
_of_settings("no_compression", 0.9, compression=False)
_of_settings("no_map", 0.5, query_aware=False, code_bytes=8, recall_at_10=None)
_of_settings("the_recipe_of_2022", 0.5, preset="recipe2022", lut_type="int8")
_of_settings("one_image", 0.9, count=1)
_of_settings("two_images", 0.9, count=2)
_of_settings("ten_images", 0.9, count=10)


@_kind
def no_captions(corpora: Corpora) -> Release:
    return _build(corpora.corpus(120, data__captions=()))


@_kind
def images_that_are_gone(corpora: Corpora) -> Release:
    """The images are unreachable or were deleted after they were embedded."""
    corpus = corpora.corpus(200)
    gone = [dataclasses.replace(record, uri=f"/nowhere/{record.id}") for record in corpus.records]
    commit_embeddings(corpus.workspace, gone, "gone")
    return _build(corpus, "gone")


@_kind
def captions_of_other_images(corpora: Corpora) -> Release:
    """The captioned images are not in the corpus: their captions have no own item, but are realistic queries."""
    corpus = corpora.corpus(200)
    others = _records(corpora.folder("others"), random_images(150, seed=3), "other-{}.png")
    commit_embeddings(corpus.workspace, others, "others")
    return _build(corpus, "others")


@_kind
def images_that_are_all_equal(corpora: Corpora) -> Release:
    return _of_images(corpora, "equal", np.repeat(random_images(1), 60, axis=0))


@_kind
def every_image_three_times(corpora: Corpora) -> Release:
    return _of_images(corpora, "thrice", np.repeat(random_images(80), 3, axis=0))


@_kind
def series_of_photos_that_hardly_differ(corpora: Corpora) -> Release:
    noise = np.random.default_rng(0).integers(0, 3, (300, 8, 8, 3), np.uint8)
    return _of_images(corpora, "series", np.minimum(np.repeat(random_images(30), 10, axis=0), 252) + noise, 0.5)


@_kind
def images_of_one_colour_each(corpora: Corpora) -> Release:
    """The embeddings span only a few dimensions."""
    colours = np.random.default_rng(0).integers(0, 256, (200, 1, 1, 3), np.uint8)
    return _of_images(corpora, "colours", np.broadcast_to(colours, (200, 8, 8, 3)))


@_kind
def ids_and_metadata_in_any_script(corpora: Corpora) -> Release:
    names = [
        "Zu\u0308rich",
        "\u65e5\u672c",
        "\U0001f3d4\ufe0f",
        'a "quoted" name',
        "back\\slash",
        "a/b/c",
        "tab\there",
        " ",
    ]
    metadata = [
        {"title": f"{name} {i}", "tags": [name, None, 1.5, True], "place": {"\u00fc": {"deep": [[]]}}, "n": 10**12 + i}
        for i, name in enumerate(names * 12)
    ]
    ids = [row["title"] for row in metadata]
    return _of_images(corpora, "scripts", random_images(len(metadata)), ids=ids, metadata=metadata)


@_kind
def no_metadata(corpora: Corpora) -> Release:
    return _of_images(corpora, "bare", random_images(90), metadata=[{}] * 90)


@_kind
def long_metadata(corpora: Corpora) -> Release:
    """The metadata of each item is longer than a block of the table."""
    texts = np.random.default_rng(0)
    metadata = [{"text": texts.bytes(4_000).hex()} for _ in range(40)]
    return _of_images(corpora, "long", random_images(40), metadata=metadata)


@_kind
def texts(corpora: Corpora) -> Release:
    """The corpus consists of texts: the image searcher finds texts by images."""
    corpus = corpora.corpus(10, data__captions=(), data__images=None)
    encoder, _, _ = tiny_encoder()
    lines = [f"w{i} w{(7 * i) % IMAGES}" for i in range(200)]
    records = [EmbeddingRecord(f"line {i}", encoder.text(t), "", f"{i:064d}", {"text": t}) for i, t in enumerate(lines)]
    commit_embeddings(corpus.workspace, records, "texts")
    path = corpus.workspace.local("embeddings", "texts") / MARKERS["embeddings"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "modality": "texts"}))
    return _build(corpus, "texts")


_REUSED_QUANTIZER: dict[str, Any] = {
    "index__code_bytes": 4,  # with an error that makes drift measurable
    "index__partitions": 8,
    "index__recall_at_10": None,
    "index__max_drift": 1e6,
    "check__min_recall_at_10": 0.1,
}


@_kind
def a_changed_corpus_with_a_reused_quantizer(corpora: Corpora) -> Release:
    """The run reuses shards of an earlier one without their dead records, and adds one."""
    corpus = corpora.corpus(**_REUSED_QUANTIZER)
    earlier = commit_embeddings(corpus.workspace, corpus.records[:350], "earlier")
    first = build_index(corpus.config, "earlier")
    gone = {record.id for record in corpus.records[:40]}
    commit_on(corpus.workspace, earlier, "changed", gone, corpus.records[350:])
    return _build_on(first, corpus, "changed")


@_kind
def a_corpus_that_has_drifted_from_its_quantizer(corpora: Corpora) -> Release:
    """Codes and centroids are less precise, but correct."""
    corpus = corpora.corpus(**_REUSED_QUANTIZER)
    first = build_index(corpus.config, "corpus")
    bright = np.maximum(random_images(200, seed=5), 120)
    commit_embeddings(corpus.workspace, _records(corpora.folder("bright"), bright, "bright-{}.png"), "bright")
    return _build_on(first, corpus, "bright")


@_kind
def two_thousand_images(corpora: Corpora) -> Release:
    return _bulk(corpora, "bulk", 2_000, recall=0.9)


@_kind
def two_thousand_images_in_codes_of_one_byte(corpora: Corpora) -> Release:
    """The codes are coarse, but correct."""
    return _bulk(corpora, "coarse-bulk", 2_000, recall=0.0, code_bytes=1, partitions=40, recall_at_10=None)


@_kind
def embeddings_of_another_backend(corpora: Corpora) -> Release:
    """The embeddings differ slightly, as those of TensorFlow and TensorFlow Lite do."""
    corpus = corpora.corpus()
    noise = np.random.default_rng(0).normal(0, 0.01, (IMAGES, corpus.records[0].embedding.size))
    vectors = unit(np.stack([record.embedding for record in corpus.records]) + noise)
    records = [dataclasses.replace(record, embedding=v) for record, v in zip(corpus.records, vectors, strict=True)]
    commit_embeddings(corpus.workspace, records, "rounded")
    return _build(corpus, "rounded")


def _build_on(first: dict[str, Any], corpus: TinyCorpus, embeddings: str) -> Release:
    """Builds a searcher with the quantizer of an earlier one."""
    index = corpus.config.index.model_copy(update={"reuse_from": first["id"]})
    second = build_index(corpus.config.model_copy(update={"index": index}), embeddings)
    assert second["quantizer"] == first["quantizer"]
    return Release(corpus.config, second["id"])


def _records(
    folder: Path,
    pixels: Pixels,
    name: str,
    ids: Sequence[str] | None = None,
    metadata: Sequence[Metadata] | None = None,
) -> list[EmbeddingRecord]:
    """Saves images and embeds them.

    Args:
      pixels: [n, 8, 8, 3] uint8.
      name: Id of an item without `ids`, with {} for its number.
    """
    encoder, _, _ = tiny_encoder()
    return [
        EmbeddingRecord(
            ids[i] if ids else name.format(i),
            encoder.image(pixels[i]),
            str(path),
            sha256_file(path),
            metadata[i] if metadata else {"number": i},
        )
        for i, path in enumerate(save_images(np.ascontiguousarray(pixels), folder))
    ]


def _of_images(
    corpora: Corpora,
    name: str,
    pixels: Pixels,
    recall: float = 0.9,
    ids: Sequence[str] | None = None,
    metadata: Sequence[Metadata] | None = None,
) -> Release:
    """Builds a searcher of images without captions from the embeddings `name`."""
    corpus = corpora.corpus(10, check__min_recall_at_10=recall, data__captions=())
    records = _records(corpora.folder(name), pixels, "image-{}.png", ids, metadata)
    commit_embeddings(corpus.workspace, records, name)
    return _build(corpus, name)


def _bulk(corpora: Corpora, name: str, count: int, recall: float, **settings: Any) -> Release:
    """Builds a searcher of captioned images and of many vectors without images, from the embeddings `name`."""
    index = {f"index__{key}": value for key, value in settings.items()}
    corpus = corpora.corpus(100, check__min_recall_at_10=recall, **index)
    vectors = unit(np.random.default_rng(0).normal(size=(count - 100, corpus.records[0].embedding.size)))
    bulk = [EmbeddingRecord(f"bulk-{i}", v, f"/nowhere/{i}", f"{i:064d}", {}) for i, v in enumerate(vectors)]
    commit_embeddings(corpus.workspace, [*bulk, *corpus.records], name, shards=3)
    return _build(corpus, name)
