"""Features are computed once, whatever is killed or added, and inputs that cannot be read are reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from searchforge.config import TrainConfig
from searchforge.errors import JobError
from searchforge.hashing import sha256_bytes
from tests.trainer import tiny_towers
from trainer import features
from trainer.cluster import ray_cluster
from trainer.features import Features, extract
from trainer.towers import TowerSpec

TEXTS = {sha256_bytes(text.encode()): text for text in (" ".join(["word"] * i) for i in range(1, 11))}
CHUNK = 4


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_cluster(TrainConfig(workers=1)):
        yield


@pytest.fixture(scope="module")
def text_tower(tmp_path_factory: pytest.TempPathFactory) -> TowerSpec:
    """Its features count words: their sum is the number of words."""
    return TowerSpec("text", f"saved_model:{tiny_towers.save_text_model(tmp_path_factory.mktemp('text') / 'model')}")


@pytest.fixture(scope="module")
def image_tower(tmp_path_factory: pytest.TempPathFactory) -> TowerSpec:
    folder = tiny_towers.save_fixed_image_model(tmp_path_factory.mktemp("image") / "model")
    return TowerSpec("image", f"saved_model:{folder}")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(features.CHUNK, "text", CHUNK)


def _words(found: Features, texts: dict[str, str]) -> list[float]:
    return [float(found.values[found.rows[key]].sum()) for key in texts]


def _expected(texts: dict[str, str]) -> list[float]:
    return [float(len(text.split())) for text in texts.values()]


def test_only_what_is_missing_is_computed_whatever_was_killed_damaged_or_added(
    text_tower: TowerSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write, written = features._write, []

    def dies(path: Path, keys: Any, values: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, keys, values)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            extract(text_tower, "tower", TEXTS, tmp_path, workers=1)
    assert [len(np.load(path)["keys"]) for path in written] == [CHUNK, CHUNK]
    written[0].write_bytes(written[0].read_bytes()[:50])  # a damaged file counts as absent
    changed = TEXTS | {"f" * 64: "another text"}
    again = extract(text_tower, "tower", changed, tmp_path, workers=1)
    assert again.computed == len(changed) - CHUNK
    assert _words(again, changed) == _expected(changed)
    assert extract(text_tower, "tower", TEXTS, tmp_path, workers=1).computed == 0


def test_images_that_cannot_be_read_are_reported(image_tower: TowerSpec, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"not an image")
    paths = {name: str(tmp_path / name) for name in ("empty.jpg", "good.png", "missing.png", "text.jpg")}
    found = extract(image_tower, "tower", paths, tmp_path / "cache", workers=1)
    assert list(found.rows) == ["good.png"] and found.values.shape == (1, tiny_towers.IMAGE_WIDTH)
    reasons = {item.key: item.reason for item in found.rejected}
    assert reasons == {"empty.jpg": "empty", "missing.png": "unseen", "text.jpg": "not_an_image"}


def test_an_image_that_only_this_machine_sees_is_the_clusters_fault(tmp_path: Path) -> None:
    path = tmp_path / "here.png"
    path.write_bytes(b"")
    item = features.Rejected("key", features.UNSEEN, f"{path}: No such file or directory on node-2")
    with pytest.raises(JobError, match=r"here\.png: No such file .* on node-2, a node of the Ray cluster; every node"):
        features._require_seen([item], {"key": str(path)})


def test_views_are_cached_by_themselves_and_rows_agree(image_tower: TowerSpec, tmp_path: Path) -> None:
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
        mirrored[name] = str(tmp_path / f"mirrored-{name}")
    cache = tmp_path / "cache"
    plain = extract(image_tower, "tower", paths, cache, workers=1)
    both = extract(image_tower, "tower", paths, cache, workers=1, views=("plain", "mirrored"))
    assert both.computed == 3  # of which the plain views were there
    np.testing.assert_array_equal(both.values, plain.values)
    np.testing.assert_allclose(both.views["mirrored"][both.rows["symmetric.png"]], plain.values[2], atol=1e-4)
    of_mirrored = extract(image_tower, "tower", {f"m{key}": path for key, path in mirrored.items()}, cache, workers=1)
    for name in ("a.png", "b.png"):
        flipped = both.views["mirrored"][both.rows[name]]
        np.testing.assert_allclose(flipped, of_mirrored.values[of_mirrored.rows[f"m{name}"]], atol=2e-2)
        assert np.abs(flipped - both.values[both.rows[name]]).max() > 0.1
    assert extract(image_tower, "tower", paths, cache, workers=1, views=("mirrored", "plain")).computed == 0


def test_a_tower_that_fails_in_a_worker_is_one_line(tmp_path: Path) -> None:
    missing = TowerSpec("text", f"saved_model:{tmp_path / 'nothing'}")
    with pytest.raises(JobError, match=r"the text tower .* failed in a worker: .*cannot be loaded") as caught:
        extract(missing, "tower", TEXTS, tmp_path / "cache", workers=1)
    assert "\n" not in str(caught.value)
