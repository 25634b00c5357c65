"""From captioned images to a bundle that the Task Library runs, on a small corpus and a local Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from searchforge import isolated
from searchforge.config import Config, load_config
from searchforge.encoder import IMAGE_TFLITE, TEXT_TFLITE, EncoderInfo
from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_file
from searchforge.workspace import Workspace
from tests.trainer import tiny_towers
from trainer import agreement, loop
from trainer import train as train_module
from trainer.batches import TrainingSet, draw
from trainer.cluster import ray_cluster
from trainer.export import ImageEncoder, TextEncoder
from trainer.heads import ResidualHead
from trainer.towers import TowerSpec, load_image_tower, load_text_tower
from trainer.train import train

COLOURS = ["red", "green", "blue", "yellow", "white", "black"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of one colour each, one of them unreadable, and a tiny image tower."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(30):
        colour, name = COLOURS[index % len(COLOURS)], f"{index:02d}.png"
        pixels = np.array(Image.new("RGB", (20, 20), colour)) ^ random.integers(0, 16, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": index, "file_name": name, "split": "train" if index < 24 else "dev"})
        for caption in (f"a {colour} picture", f"number {index} is all {colour}"):
            annotations.append({"image_id": index, "caption": caption})
    (folder / "images" / "03.png").write_bytes(b"not an image")
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    tiny_towers.save_fixed_image_model(folder / "tower")
    return folder


@pytest.fixture(scope="module")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(
        None,
        {
            "workspace": str(tmp_path_factory.mktemp("workspace")),
            "data.captions": [str(corpus / "captions.json")],
            "data.images": str(corpus / "images"),
            "train.image_tower": f"saved_model:{corpus / 'tower'}",
            "train.epochs": 3,
            "train.batch_size": 8,
            "train.dim": 16,
            "train.sequence_length": 8,
        },
    )


@pytest.fixture(scope="module")
def cluster(config: Config) -> Iterator[None]:
    """One local Ray cluster for the whole module."""
    with ray_cluster(config.train):
        yield


@pytest.fixture(scope="module")
def encoder(config: Config, cluster: None) -> EncoderInfo:
    return train(config)


def test_the_bundle_is_whole_and_agrees_with_tensorflow(config: Config, encoder: EncoderInfo) -> None:
    folder = Workspace(config.workspace).local("encoders", encoder.id)
    assert EncoderInfo.model_validate_json((folder / "encoder.json").read_bytes()) == encoder
    for name, digest in encoder.files.items():
        assert sha256_file(folder / name) == digest
    assert (encoder.dim, encoder.sequence_length) == (16, 8)
    assert encoder.preprocessing == "decode|resize(16,16,bilinear)|scale(0,1)"
    report = encoder.report
    assert report["agreement"]["text"]["mean_cosine"] >= agreement.MIN_COSINE
    assert report["agreement"]["image"]["mean_cosine"] >= agreement.MIN_COSINE
    assert report["heldout"]["gallery"] == 6 and report["heldout"]["captions"] == 12
    assert report["losses"][-1] < report["losses"][0]


def test_unreadable_images_are_left_out_and_named(encoder: EncoderInfo) -> None:
    assert encoder.report["images"]["train"] == 23
    assert [(item["id"], item["reason"]) for item in encoder.report["images"]["rejected"]] == [
        ("03.png", "not_an_image")
    ]


def test_a_rerun_finds_the_bundle(config: Config, encoder: EncoderInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "ray_cluster", None)  # any work would need it
    assert train(config) == encoder


def test_a_bundle_that_disagrees_is_refused(tmp_path: Path, corpus: Path) -> None:
    tower = load_image_tower(TowerSpec("image", f"saved_model:{corpus / 'tower'}"))
    heads = [ResidualHead(tower.width, 16, seed, "image") for seed in (1, 2)]
    ImageEncoder(tower, heads[0]).save(tmp_path / "image_encoder")
    ImageEncoder(tower, heads[1]).save_tflite(tmp_path / IMAGE_TFLITE)
    with pytest.raises(JobError, match="disagrees with TensorFlow"):
        agreement.check_images(tmp_path, np.zeros((2, 16, 16, 3), np.uint8))


def test_a_text_tower_that_the_task_library_cannot_run_is_refused(tmp_path: Path) -> None:
    tower = load_text_tower(TowerSpec("text", f"saved_model:{tiny_towers.save_text_model(tmp_path / 'model')}"))
    encoder = TextEncoder(tower, ResidualHead(tower.width, 16, 0, "text"))
    with pytest.raises(JobError, match="Task Library"):
        encoder.save_tflite(tmp_path / TEXT_TFLITE, "float32")
        request = {"do": "embed_texts", "model": str(tmp_path / TEXT_TFLITE), "texts": ["a b"]}
        isolated.call("trainer.metadata", {**request, "output": str(tmp_path / "out.npy")})


def test_too_few_images_are_refused(config: Config, corpus: Path) -> None:
    captions = json.loads((corpus / "captions.json").read_text())
    captions["images"] = captions["images"][:3]
    captions["annotations"] = captions["annotations"][:6]
    path = corpus / "few.json"
    path.write_text(json.dumps(captions))
    few = config.model_copy(update={"data": config.data.model_copy(update={"captions": (str(path),)})})
    with pytest.raises(UsageError, match="3 readable training images are too few for 2 workers"):
        train(few)


def test_batches_follow_from_the_seed_and_join_to_the_global_batch(config: Config) -> None:
    random = np.random.default_rng(0)
    data = TrainingSet(
        images=random.normal(size=(12, 5)).astype(np.float32),
        texts=random.normal(size=(40, 7)).astype(np.float32),
        captions=random.integers(0, 40, (12, 3)).astype(np.int32),
        caption_counts=np.full(12, 3, np.int32),
    )

    def drawn(part: slice) -> tuple[Any, Any, Any]:
        return draw(config.train, data, np.arange(12), np.random.default_rng(3), part)

    whole, halves = drawn(slice(0, 12)), [drawn(slice(0, 6)), drawn(slice(6, 12))]
    for joined, *parts in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(joined, np.concatenate(parts))
    images, texts, ids = whole
    assert (images.shape, texts.shape, ids.shape) == ((12, 5), (12, 2, 7), (12, 2))


def test_a_run_continues_from_its_checkpoint_as_if_undisturbed(config: Config) -> None:
    random = np.random.default_rng(0)
    data = TrainingSet(
        images=random.normal(size=(8, 5)).astype(np.float32),
        texts=random.normal(size=(8, 7)).astype(np.float32),
        captions=np.arange(8, dtype=np.int32)[:, np.newaxis],
        caption_counts=np.ones(8, np.int32),
    )

    def new_run() -> Any:
        return loop.Run(config.train, data, tf.distribute.OneDeviceStrategy("cpu:0"), steps=4)

    def steps(run: Any, numbers: range) -> None:
        for number in numbers:
            batch = draw(config.train, data, np.arange(8), np.random.default_rng(number), slice(0, 8))
            run.step(*batch, np.array([0, number], np.int32))

    whole, killed, resumed = new_run(), new_run(), new_run()
    steps(whole, range(4))
    steps(killed, range(2))
    resumed.load(killed.state())
    steps(resumed, range(2, 4))
    expected, found = whole.state(), resumed.state()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(config: Config, cluster: None, tmp_path: Path) -> None:
    data = TrainingSet(
        images=np.full((8, 5), np.nan, np.float32),
        texts=np.ones((8, 7), np.float32),
        captions=np.arange(8, dtype=np.int32)[:, np.newaxis],
        caption_counts=np.ones(8, np.int32),
    )
    with pytest.raises(JobError, match="loss is nan in epoch 1, step 1"):
        loop.train_heads(config.train, data, tmp_path, "nan", 1)
