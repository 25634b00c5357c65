"""Text queries for tuning are a seeded sample from different images in each set, embedded as on a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.corpus.queries import QueryTexts, choose_texts, embed_queries, embed_texts
from searchforge.artifacts.encoder import TEXT_TFLITE
from searchforge.config import Config, load_config
from searchforge.errors import JobError
from tests.indexer.tiny_corpus import DIM, tiny_encoder

IMAGES = 24
CAPTIONS = 3


def test_texts_are_embedded_as_the_numpy_twin_does(tmp_path: Path) -> None:
    encoder, _, bundle = tiny_encoder()
    texts = [f"w{i} w{i + 1}" for i in range(150)]
    vectors = embed_texts(bundle / TEXT_TFLITE, texts, tmp_path)
    assert (vectors.shape, vectors.dtype) == ((150, DIM), np.float32)
    np.testing.assert_allclose(vectors, np.stack([encoder.text(text) for text in texts]), atol=1e-5)


def test_results_are_cached_by_encoder_and_texts(tmp_path: Path) -> None:
    encoder, cache = tiny_encoder()[2] / TEXT_TFLITE, tmp_path / "cache"
    first = embed_texts(encoder, ["w1", "w2"], cache)
    (cached,) = cache.iterdir()
    np.testing.assert_array_equal(np.load(cached), first)
    np.save(cached, first + 1)  # distinguishes cached from computed results
    np.testing.assert_array_equal(embed_texts(encoder, ["w1", "w2"], cache), first + 1)
    assert list(cache.iterdir()) == [cached]
    other = tmp_path / "other.tflite"
    other.write_bytes(encoder.read_bytes() + b"\0")
    np.testing.assert_array_equal(embed_texts(encoder, ["w2", "w1"], cache), first[::-1])
    np.testing.assert_array_equal(embed_texts(other, ["w1", "w2"], cache), first)
    assert len(embed_texts(encoder, ["w1 w2"], cache)) == 1
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_cache_entry_is_computed_again(tmp_path: Path) -> None:
    encoder = tiny_encoder()[2] / TEXT_TFLITE
    first = embed_texts(encoder, ["w1"], tmp_path)
    (cached,) = tmp_path.iterdir()
    for damaged in (cached.read_bytes()[:-4], b""):
        cached.write_bytes(damaged)
        np.testing.assert_array_equal(embed_texts(encoder, ["w1"], tmp_path), first)


def test_an_error_names_the_text_that_the_task_library_rejects(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"rejects the text 'w1 \\ud800'"):
        embed_texts(tiny_encoder()[2] / TEXT_TFLITE, ["w1", "w1 \ud800"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_the_file_that_the_task_library_cannot_open(tmp_path: Path) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(JobError, match=r"cannot run .*broken\.tflite"):
        embed_texts(tmp_path / "broken.tflite", ["w1"], tmp_path)


def test_without_captions_there_are_no_queries(tmp_path: Path) -> None:
    assert choose_texts(Config(workspace=str(tmp_path / "workspace"))) is None


def test_zero_requested_captions_give_no_queries(tmp_path: Path) -> None:
    assert choose_texts(_captioned(tmp_path, ["train", "dev"], index__queries=0)) is None


def test_each_set_of_captions_is_embedded(tmp_path: Path) -> None:
    encoder, _, bundle = tiny_encoder()
    texts = _chosen(_captioned(tmp_path, ["train", "dev"]))
    found = embed_queries(bundle / TEXT_TFLITE, texts, tmp_path / "cache")
    for vectors, captions in (
        (found.training, texts.training),
        (found.tuning, texts.tuning),
        (found.verification, texts.verification),
    ):
        np.testing.assert_allclose(vectors, np.stack([encoder.text(text) for text in captions]), atol=1e-5)


def test_sets_have_the_requested_sizes(tmp_path: Path) -> None:
    texts = _chosen(_captioned(tmp_path / "few", ["train", "dev"], index__queries=30))
    assert [len(texts.training), len(texts.tuning), len(texts.verification)] == [30, 5, 5]
    texts = _chosen(_captioned(tmp_path / "all", ["train", "dev"]))
    available = [IMAGES // 2 * CAPTIONS, IMAGES // 4 * CAPTIONS, IMAGES // 4 * CAPTIONS]
    assert [len(texts.training), len(texts.tuning), len(texts.verification)] == available


@pytest.mark.parametrize("splits", [["train", "dev"], ["train"], ["dev"], [None]])
def test_no_image_is_in_two_sets_and_none_is_empty(tmp_path: Path, splits: list[str | None]) -> None:
    """Even if no or all images are held out: the available images are divided among all three sets."""
    texts = _chosen(_captioned(tmp_path, splits, data__holdout=0.0))
    images = [_images(part) for part in (texts.training, texts.tuning, texts.verification)]
    assert all(images)
    assert sum(map(len, images)) == len(set.union(*images)) == IMAGES


def test_training_queries_come_from_training_images(tmp_path: Path) -> None:
    texts = _chosen(_captioned(tmp_path, ["train", "dev"]))
    assert _images(texts.training) == set(range(0, IMAGES, 2))
    assert _images(texts.tuning) | _images(texts.verification) == set(range(1, IMAGES, 2))


def test_samples_depend_on_the_seed_and_not_on_the_order_of_the_file(tmp_path: Path) -> None:
    first = _chosen(_captioned(tmp_path / "a", ["train", "dev"], index__queries=12))
    reversed_file = _chosen(_captioned(tmp_path / "b", ["train", "dev"], reverse=True, index__queries=12))
    other = _chosen(_captioned(tmp_path / "c", ["train", "dev"], index__queries=12, index__seed=1))
    assert first == reversed_file
    assert first.id == reversed_file.id != other.id
    assert set(first.training) != set(other.training)


def _chosen(config: Config) -> QueryTexts:
    texts = choose_texts(config)
    assert texts
    return texts


def _captioned(folder: Path, splits: Sequence[str | None], reverse: bool = False, **settings: Any) -> Config:
    """Writes captioned images; image i is in split i modulo the number of splits."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for image in range(IMAGES):
        (folder / "images" / f"{image}.jpg").write_bytes(b"content %d" % image)
        split = splits[image % len(splits)]
        for text in _texts(image):
            rows.append({"image": f"{image}.jpg", "caption": text, **({"split": split} if split else {})})
    lines = [json.dumps(row) + "\n" for row in (reversed(rows) if reverse else rows)]
    (folder / "captions.jsonl").write_text("".join(lines))
    overrides = {
        "workspace": str(folder / "workspace"),
        "data.captions": str(folder / "captions.jsonl"),
        "data.images": str(folder / "images"),
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    return load_config(None, overrides)


def _texts(image: int) -> list[str]:
    return [" ".join([f"w{image}"] * 4 + [f"w{100 + image + caption}"]) for caption in range(CAPTIONS)]


def _images(texts: Sequence[str]) -> set[int]:
    """Returns the images that the captions describe."""
    return {int(text.split()[0].removeprefix("w")) for text in texts}
