"""Text queries for tuning: seeded, from different images in each set, and embedded as a device does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer import queries
from indexer.queries import TextQueries, embed_texts, load_text_queries
from searchforge.config import Config, load_config
from searchforge.encoder import TEXT_TFLITE
from searchforge.errors import JobError
from tests.indexer.tiny_corpus import DIM, tiny_encoder

IMAGES = 24
CAPTIONS = 3


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeds with NumPy, where only the choice of captions matters."""

    def embed(encoder: Path, texts: Sequence[str]) -> np.ndarray:
        return np.stack([tiny_encoder()[0].text(text) for text in texts])

    monkeypatch.setattr(queries, "_embed", embed)


def test_texts_are_embedded_as_the_numpy_twin_does(tmp_path: Path) -> None:
    encoder, _, bundle = tiny_encoder()
    texts = [f"w{i} w{i + 1}" for i in range(150)]
    vectors = embed_texts(bundle / TEXT_TFLITE, texts, tmp_path)
    assert (vectors.shape, vectors.dtype) == ((150, DIM), np.float32)
    np.testing.assert_allclose(vectors, np.stack([encoder.text(text) for text in texts]), atol=1e-5)


def test_results_are_kept_by_encoder_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_encoder()[2] / TEXT_TFLITE
    first = embed_texts(encoder, ["w1", "w2"], tmp_path)
    monkeypatch.setattr(queries, "_embed", _never)
    np.testing.assert_array_equal(embed_texts(encoder, ["w1", "w2"], tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1
    other = tmp_path / "other.tflite"
    other.write_bytes(encoder.read_bytes() + b"\0")
    for path, texts in ((encoder, ["w2", "w1"]), (encoder, ["w1 w2"]), (other, ["w1", "w2"])):
        with pytest.raises(AssertionError, match="embedded"):
            embed_texts(path, texts, tmp_path)


def test_a_damaged_result_is_made_anew(tmp_path: Path) -> None:
    encoder = tiny_encoder()[2] / TEXT_TFLITE
    first = embed_texts(encoder, ["w1"], tmp_path)
    (kept,) = tmp_path.iterdir()
    for damaged in (kept.read_bytes()[:-4], b""):
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(embed_texts(encoder, ["w1"], tmp_path), first)


def test_a_text_that_the_task_library_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"refuses the text 'w1 \\ud800'"):
        embed_texts(tiny_encoder()[2] / TEXT_TFLITE, ["w1", "w1 \ud800"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_task_library_does_not_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(JobError, match=r"cannot run .*broken\.tflite"):
        embed_texts(tmp_path / "broken.tflite", ["w1"], tmp_path)


def test_without_captions_there_are_no_queries(tmp_path: Path) -> None:
    assert _load(Config(workspace=str(tmp_path / "workspace")), tmp_path) is None


def test_where_no_caption_is_asked_for_there_are_no_queries(tmp_path: Path) -> None:
    assert _load(_captioned(tmp_path, ["train", "dev"]), tmp_path, training=0, heldout=0) is None


def test_queries_are_embedded_captions(tmp_path: Path) -> None:
    encoder = tiny_encoder()[0]
    found = _load(_captioned(tmp_path, ["train", "dev"]), tmp_path)
    assert found
    expected = {text: encoder.text(text) for image in range(IMAGES) for text in _texts(image)}
    nearest = [np.abs(row - np.stack(list(expected.values()))).max(1).min() for row in _rows(found)]
    assert max(nearest) < 1e-5


@pytest.mark.usefixtures("twin")
def test_sets_have_the_sizes_that_are_asked_for(tmp_path: Path) -> None:
    config = _captioned(tmp_path, ["train", "dev"])
    found = _load(config, tmp_path, training=10, heldout=9)
    assert found
    assert [len(rows) for rows in (found.training, found.tuning, found.verification)] == [10, 5, 4]
    all_there_are = _load(config, tmp_path)
    assert all_there_are
    assert [len(rows) for rows in (all_there_are.training, all_there_are.tuning, all_there_are.verification)] == [
        IMAGES // 2 * CAPTIONS,
        IMAGES // 4 * CAPTIONS,
        IMAGES // 4 * CAPTIONS,
    ]


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("splits", [["train", "dev"], ["train"], ["dev"], [None]])
def test_no_image_is_in_two_sets_and_none_is_empty(tmp_path: Path, splits: list[str | None]) -> None:
    """Also where nothing is held out, or all is: what there is serves for all three."""
    found = _load(_captioned(tmp_path, splits, data__holdout=0.0), tmp_path)
    assert found
    images = [_images(rows) for rows in (found.training, found.tuning, found.verification)]
    assert all(images)
    assert sum(map(len, images)) == len(set.union(*images)) == IMAGES


@pytest.mark.usefixtures("twin")
def test_training_queries_are_of_training_images(tmp_path: Path) -> None:
    found = _load(_captioned(tmp_path, ["train", "dev"]), tmp_path)
    assert found
    assert _images(found.training) == set(range(0, IMAGES, 2))
    assert _images(found.tuning) | _images(found.verification) == set(range(1, IMAGES, 2))


@pytest.mark.usefixtures("twin")
def test_samples_follow_the_seed_and_not_the_order_of_the_file(tmp_path: Path) -> None:
    counts = {"training": 12, "heldout": 12}
    first = _load(_captioned(tmp_path / "a", ["train", "dev"]), tmp_path, **counts)
    reversed_file = _load(_captioned(tmp_path / "b", ["train", "dev"], reverse=True), tmp_path, **counts)
    other = _load(_captioned(tmp_path / "c", ["train", "dev"]), tmp_path, seed=1, **counts)
    assert first and reversed_file and other
    np.testing.assert_array_equal(_rows(first), _rows(reversed_file))
    assert {row.tobytes() for row in first.training} != {row.tobytes() for row in other.training}
    assert _images(first.tuning) != _images(other.tuning)


def _load(config: Config, folder: Path, training: int = 1000, heldout: int = 1000, seed: int = 0) -> TextQueries | None:
    encoder = tiny_encoder()[2] / TEXT_TFLITE
    return load_text_queries(config, encoder, folder / "cache", training=training, heldout=heldout, seed=seed)


def _captioned(folder: Path, splits: Sequence[str | None], reverse: bool = False, **settings: Any) -> Config:
    """Writes images and their captions; image i is of split i modulo the number of splits."""
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


def _images(rows: np.ndarray) -> set[int]:
    """Returns the images whose captions the rows are."""
    encoder = tiny_encoder()[0]
    images = [image for image in range(IMAGES) for _ in range(CAPTIONS)]
    vectors = np.stack([encoder.text(text) for image in range(IMAGES) for text in _texts(image)])
    return {images[np.argmax(vectors @ row)] for row in rows}


def _rows(found: TextQueries) -> np.ndarray:
    return np.concatenate([found.training, found.tuning, found.verification])


def _never(*arguments: Any) -> np.ndarray:
    raise AssertionError("texts were embedded again")
