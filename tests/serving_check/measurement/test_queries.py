"""Captions that did not tune the index come first; captions of other images fill up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from searchforge.captions.dataset import CaptionedImage, load_captions, split_heldout, split_queries
from serving_check.measurement.corpus import Corpus, load_corpus
from serving_check.measurement.queries import (
    NO_ITEM,
    HeldOutImages,
    caption_queries,
    held_out,
    image_queries,
    probe_images,
)
from tests.indexer.tiny_corpus import TinyCorpus, make_corpus


def images(*names: str) -> list[CaptionedImage]:
    return [CaptionedImage(name, f"/nowhere/{name}", "dev", (f"{name} a", f"{name} b")) for name in names]


def opened(made: TinyCorpus) -> Corpus:
    from searchforge.artifacts.manifest import Manifest

    return load_corpus(made.workspace, Manifest.model_validate(made.workspace.marker("embeddings", "corpus")))


def test_captions_that_did_not_tune_the_index_come_first(tmp_path: Path) -> None:
    made = make_corpus(tmp_path, 40)
    split = split_queries(split_heldout(load_captions(made.config), made.config), seed=5)
    found = held_out(made.config, seed=5)
    assert {image.id for image in found.tuning} == {image.id for image in split.tuning}
    assert {image.id for image in found.unseen} == {image.id for image in split.verification}
    corpus = opened(made)
    some = caption_queries(found, corpus, len(found.unseen), seed=0)
    assert some.seen_by_tuner == 0
    assert {corpus.ids[row] for row in some.targets} == {image.id for image in found.unseen}
    more = caption_queries(found, corpus, len(found.unseen) + 3, seed=0)
    assert (len(more), more.seen_by_tuner) == (len(found.unseen) + 3, 3)


def test_captions_of_images_outside_the_corpus_only_fill_up(tmp_path: Path) -> None:
    corpus = opened(make_corpus(tmp_path, 10))
    found = HeldOutImages(images("00001.png", "elsewhere.png"), images("00003.png"))
    two = caption_queries(found, corpus, 2, seed=0)
    assert two.values == ["00001.png a", "00001.png b"]
    every = caption_queries(found, corpus, 100, seed=0)
    assert len(every) == 6
    assert [corpus.ids[row] if row != NO_ITEM else "" for row in every.targets] == [
        *["00001.png"] * 2,
        *["00003.png"] * 2,
        *[""] * 2,
    ]
    assert every.with_item == [0, 1, 2, 3]
    assert len(set(every.groups)) == 3


def test_an_item_is_recognized_by_its_uri(tmp_path: Path) -> None:
    made = make_corpus(tmp_path, 10)
    from searchforge.artifacts.manifest import Manifest

    path = Path(made.records[4].uri)
    manifest = Manifest.model_validate(made.workspace.marker("embeddings", "corpus"))
    corpus = load_corpus(made.workspace, manifest, {str(path)})
    other_id = CaptionedImage("album/renamed.png", str(path), "dev", ("w4",))
    queries = caption_queries(HeldOutImages([other_id], []), corpus, 5, seed=0)
    assert [corpus.ids[row] for row in queries.targets] == [made.records[4].id]


def test_changed_and_missing_images_are_no_queries_but_counted(tmp_path: Path) -> None:
    made = make_corpus(tmp_path, 10)
    Path(made.records[2].uri).unlink()
    Path(made.records[3].uri).write_bytes(b"another content")
    folder = tmp_path / "copies"
    folder.mkdir()
    corpus = opened(made)
    queries, drawn = image_queries(corpus, 10, seed=0, folder=folder)
    assert drawn == 10
    assert sorted(corpus.ids[row] for row in queries.targets) == [
        record.id for i, record in enumerate(made.records) if i not in (2, 3)
    ]


def test_probe_images_differ_and_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (tmp_path / "a", tmp_path / "b")
    for folder in (first, second):
        folder.mkdir()
    contents = [[Path(path).read_bytes() for path in probe_images(folder)] for folder in (first, second)]
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == len(contents[0]) > 1
    assert np.all([len(content) > 100 for content in contents[0]])
