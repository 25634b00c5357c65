"""The demo's corpus is reproducible, has well-formed captions and a held-out split."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from infra.demo.scenes import describe, random_scene, write_scenes
from searchforge.captions.dataset import load_captions, split_heldout
from searchforge.config import Config, DataConfig
from searchforge.errors import UsageError


def test_scenes_are_a_captioned_corpus(tmp_path: Path) -> None:
    captions = write_scenes(tmp_path, 50)
    data = DataConfig(captions=(str(captions),), images=str(tmp_path / "images"))
    config = Config(workspace=str(tmp_path / "workspace"), data=data)
    read = load_captions(config)
    split = split_heldout(read, config)
    assert (len(read.images), len(split.train), len(split.heldout)) == (50, 45, 5)
    for image in read.images:
        assert len(set(image.captions)) == 5
        with Image.open(image.uri) as picture:
            assert (picture.size, picture.mode) == ((224, 224), "RGB")


def test_the_seed_determines_the_corpus(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", 5, seed=3)
    write_scenes(tmp_path / "b", 5, seed=3)
    write_scenes(tmp_path / "c", 5, seed=4)
    contents = [
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*")) if path.is_file()] for name in "abc"
    ]
    assert contents[0] == contents[1] != contents[2]


def test_a_complete_corpus_is_kept_and_an_incomplete_one_redrawn(tmp_path: Path) -> None:
    captions = write_scenes(tmp_path, 5)
    image = tmp_path / "images" / "scene-00000.jpg"
    drawn = image.read_bytes()
    image.write_bytes(b"touched")
    write_scenes(tmp_path, 5)
    assert image.read_bytes() == b"touched"
    captions.unlink()
    write_scenes(tmp_path, 5)
    assert image.read_bytes() == drawn


def test_images_that_the_demo_did_not_draw_are_kept(tmp_path: Path) -> None:
    photo = tmp_path / "images" / "holiday.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"holiday\.jpg was not drawn by the demo"):
        write_scenes(tmp_path, 5)
    assert photo.read_bytes() == b"mine"


@pytest.mark.parametrize("seed", range(20))
def test_captions_name_the_drawn_objects(seed: int) -> None:
    generator = random.Random(seed)
    scene = random_scene(generator)
    assert scene.first.kind != scene.second.kind and scene.first.colour != scene.second.colour
    captions = describe(scene, generator)
    assert len(captions) == 5
    for caption in captions:
        for item in (scene.first, scene.second):
            assert f"{item.colour} {item.kind}" in caption
        assert scene.place in caption.lower()
        assert " a orange" not in caption.lower()
