"""Tests that features are computed only once, and that unreadable inputs are reported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from searchforge.errors import JobError, PermanentError
from searchforge.hashing import sha256_bytes
from tests.trainer import tiny_towers
from trainer.data import UNREADABLE_ON_WORKER, Rejection
from trainer.features import extraction
from trainer.features.cache import FeatureCache, RowLocations
from trainer.features.extraction import ExtractionRequest, Features, extract
from trainer.ray_cluster import Allocation
from trainer.towers import TowerSpec

TEXTS = {sha256_bytes(text.encode()): text for text in (" ".join(["word"] * i) for i in range(1, 11))}
CHUNK = 4

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def text_tower(tiny_text_model: Path) -> TowerSpec:
    return TowerSpec("text", f"saved_model:{tiny_text_model}")


@pytest.fixture(scope="module")
def image_tower(tiny_image_model: Path) -> TowerSpec:
    return TowerSpec("image", f"saved_model:{tiny_image_model}")


class DyingCache(FeatureCache):
    """A cache that raises KeyboardInterrupt on the third write."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[Path] = []

    def write(self, name: str, keys: Sequence[str], values: Any) -> RowLocations:
        if len(self.written) == 2:
            raise KeyboardInterrupt
        rows = super().write(name, keys, values)
        self.written.append(rows[keys[0]][0])
        return rows


def _extract(request: ExtractionRequest, cache: FeatureCache) -> Features:
    (features,) = extract([request], cache, Allocation(workers=1), chunk={"image": CHUNK, "text": CHUNK})
    return features


def _word_counts(features: Features, texts: dict[str, str]) -> list[float]:
    return [float(features.values[features.rows[key]].sum()) for key in texts]


def _expected(texts: dict[str, str]) -> list[float]:
    return [float(len(text.split())) for text in texts.values()]


def test_only_missing_features_are_computed_after_a_kill_damage_and_additions(
    text_tower: TowerSpec, tmp_path: Path
) -> None:
    dying, cache = DyingCache(tmp_path), FeatureCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        _extract(ExtractionRequest(text_tower, "tower", TEXTS), dying)
    assert [len(np.load(path)["keys"]) for path in dying.written] == [CHUNK, CHUNK]
    dying.written[0].write_bytes(dying.written[0].read_bytes()[:50])  # damages the file
    changed = TEXTS | {"f" * 64: "another text"}
    again = _extract(ExtractionRequest(text_tower, "tower", changed), cache)
    assert again.computed == len(changed) - CHUNK
    assert again.seconds > 0
    assert _word_counts(again, changed) == _expected(changed)
    assert _extract(ExtractionRequest(text_tower, "tower", TEXTS), cache).computed == 0


def test_unreadable_images_are_reported_while_another_tower_embeds_texts(
    image_tower: TowerSpec, text_tower: TowerSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"not an image")
    paths = {name: str(tmp_path / name) for name in ("empty.jpg", "good.png", "missing.png", "text.jpg")}
    requests = [ExtractionRequest(image_tower, "tower", paths), ExtractionRequest(text_tower, "tower", TEXTS)]
    images, texts = extract(requests, FeatureCache(tmp_path / "cache"), Allocation(workers=2))
    assert list(images.rows) == ["good.png"] and images.values.shape == (1, tiny_towers.IMAGE_WIDTH)
    reasons = {item.key: item.reason for item in images.rejected}
    assert reasons == {"empty.jpg": "empty", "missing.png": "unseen", "text.jpg": "not_an_image"}
    assert _word_counts(texts, TEXTS) == _expected(TEXTS) and texts.rejected == []
    assert (images.computed, texts.computed) == (4, 10) and min(images.seconds, texts.seconds) > 0
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition(" in ")[0].strip() for line in shown if " in " in line] == [
        "extracting image features: 4/4",
        "extracting caption features: 10/10",
    ]


def test_an_image_that_only_this_machine_sees_is_an_error_of_the_cluster(tmp_path: Path) -> None:
    path = tmp_path / "here.png"
    path.write_bytes(b"")
    item = Rejection("key", UNREADABLE_ON_WORKER, f"{path}: No such file or directory on node-2")
    with pytest.raises(JobError, match=r"here\.png: No such file .* on node-2, a node of the Ray cluster; every node"):
        extraction.require_visible_on_workers([item], {"key": str(path)})


def test_augmentations_are_cached_separately_with_matching_rows(image_tower: TowerSpec, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = {}
    for name in ("a.png", "b.png", "symmetric.png"):
        pixels = random.integers(0, 256, (30, 40, 3), np.uint8)
        if name == "symmetric.png":
            pixels[:, 20:] = pixels[:, 19::-1]
        Image.fromarray(pixels).save(tmp_path / name)
        paths[name] = str(tmp_path / name)
    mirrored = {}
    for name in ("a.png", "b.png"):
        Image.fromarray(np.asarray(Image.open(paths[name]))[:, ::-1]).save(tmp_path / f"mirrored-{name}")
        mirrored[f"m{name}"] = str(tmp_path / f"mirrored-{name}")
    cache = FeatureCache(tmp_path / "cache")
    first = [ExtractionRequest(image_tower, "tower", paths), ExtractionRequest(image_tower, "tower", mirrored)]
    unaugmented, mirrored_files = extract(first, cache, Allocation(workers=1))
    both = _extract(ExtractionRequest(image_tower, "tower", paths, ("plain", "mirrored")), cache)
    assert both.computed == 3  # only their mirror images
    np.testing.assert_array_equal(both.values, unaugmented.values)
    symmetric = both.by_augmentation["mirrored"][both.rows["symmetric.png"]]
    np.testing.assert_allclose(symmetric, unaugmented.values[2], atol=1e-4)
    for name in ("a.png", "b.png"):
        flipped = both.by_augmentation["mirrored"][both.rows[name]]
        np.testing.assert_allclose(flipped, mirrored_files.values[mirrored_files.rows[f"m{name}"]], atol=2e-2)
        assert np.abs(flipped - both.values[both.rows[name]]).max() > 0.1
    assert _extract(ExtractionRequest(image_tower, "tower", paths, ("mirrored", "plain")), cache).computed == 0


def test_the_error_of_a_tower_in_a_worker_is_one_line(tmp_path: Path) -> None:
    missing = ExtractionRequest(TowerSpec("text", f"saved_model:{tmp_path / 'nothing'}"), "tower", TEXTS)
    with pytest.raises(JobError, match=r"the text tower .* failed in a worker: .*cannot be loaded") as caught:
        _extract(missing, FeatureCache(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_a_fault_of_a_tower_is_permanent(text_tower: TowerSpec, tmp_path: Path) -> None:
    faulty = ExtractionRequest(text_tower, "tower", TEXTS, weights={"kernel": np.zeros(1, np.float32)})
    with pytest.raises(PermanentError, match="failed in a worker"):
        _extract(faulty, FeatureCache(tmp_path / "cache"))


def test_a_worker_with_a_gpu_extracts_features(text_tower: TowerSpec, tmp_path: Path) -> None:
    request = ExtractionRequest(text_tower, "tower", TEXTS)
    (features,) = extract([request], FeatureCache(tmp_path), Allocation(workers=1, gpus=1))
    assert _word_counts(features, TEXTS) == _expected(TEXTS)


def test_no_workers_are_started_if_everything_is_cached(
    text_tower: TowerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path)
    name = cache.name("text", "tower", "plain")
    cache.write(name, list(TEXTS), np.arange(len(TEXTS), dtype=np.float32)[:, np.newaxis])
    monkeypatch.setitem(sys.modules, "ray.data", None)  # importing it fails
    features = _extract(ExtractionRequest(text_tower, "tower", TEXTS), cache)
    assert (features.computed, features.seconds) == (0, 0.0)
    assert _word_counts(features, TEXTS) == list(range(len(TEXTS)))
