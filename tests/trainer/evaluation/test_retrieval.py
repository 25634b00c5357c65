"""Tests retrieval metrics against a naive implementation, and `evaluate_bundle` on images of known colours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from searchforge.artifacts.encoder import TEXT_SAVED_MODEL
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config
from searchforge.errors import JobError, UsageError
from tests.tiny_bundle import write_bundle, write_colour_bundle
from trainer.evaluate import choose_encoder, evaluate_bundle
from trainer.evaluation.report import EvaluationReport, summary
from trainer.evaluation.retrieval import image_ranks, text_ranks, text_to_image


def _random_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns vectors of small integers, with exact products and many ties, for 1 to 5 captions per image."""
    random = np.random.default_rng(0)
    owners = np.repeat(np.arange(600), random.integers(1, 6, 600))
    random.shuffle(owners)
    texts = random.integers(-2, 3, (len(owners), 4)).astype(np.float32)
    images = random.integers(-2, 3, (600, 4)).astype(np.float32)
    return texts, images, owners


def test_a_captions_image_ranks_after_all_images_with_the_same_score() -> None:
    texts, images, owners = _random_case()
    expected = [
        1 + (np.delete(images, own, 0) @ text >= images[own] @ text).sum()
        for text, own in zip(texts, owners, strict=True)
    ]
    np.testing.assert_array_equal(text_ranks(texts, images, owners), expected)
    found = text_to_image(texts, images, owners)
    assert found["r_at_5"] == np.mean(np.array(expected) <= 5)
    assert (found["captions"], found["gallery"]) == (len(texts), 600)


def test_an_images_rank_is_that_of_its_best_caption() -> None:
    texts, images, owners = _random_case()
    expected = []
    for row, image in enumerate(images):
        best = (texts[owners == row] @ image).max()
        expected.append(1 + (texts[owners != row] @ image >= best).sum())
    np.testing.assert_array_equal(image_ranks(texts, images, owners), expected)


def test_nan_embeddings_rank_last() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.full((3, 3), np.nan, np.float32)
    assert text_ranks(texts, images, np.arange(3)).tolist() == [3, 3, 3]
    assert image_ranks(texts, images, np.arange(3)).tolist() == [3, 3, 3]


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
CAPTIONS = {
    "red": ["red", "a thing in plain red that has nothing else to it than to be seen from here"],
    "green": ["green", "all of it is green"],
    "blue": ["blue", "red it is not"],  # the second caption finds red; blue scores 0, like green
    "yellow": ["red and green", "green and red"],
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four held-out images, a held-out file that is not an image, and a training image."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for index, (name, colour) in enumerate({**COLOURS, "white": (255, 255, 255)}.items()):
        Image.new("RGB", (20, 20), colour).save(tmp_path / "images" / f"{name}.png")
        kinds = ["warm"] if name in ("red", "yellow") else ["cold", "other"]
        split = "dev" if name in COLOURS else "train"
        images.append({"id": index, "file_name": f"{name}.png", "split": split, "categories": kinds})
        annotations += [{"image_id": index, "caption": text} for text in CAPTIONS.get(name, ["white"])]
    (tmp_path / "images" / "broken.png").write_bytes(b"not an image")
    images.append({"id": 9, "file_name": "broken.png", "split": "dev"})
    annotations += [{"image_id": 9, "caption": "green"}, {"image_id": 9, "caption": "blue"}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


@pytest.fixture
def config(corpus: Path) -> Config:
    return load_config(
        None,
        {
            "workspace": str(corpus / "workspace"),
            "data.captions": [str(corpus / "captions.json")],
            "data.images": str(corpus / "images"),
        },
    )


def test_a_bundle_is_measured_on_the_heldout_images(config: Config) -> None:
    workspace = Workspace(config.workspace)
    info = write_colour_bundle(workspace)
    report = evaluate_bundle(config)
    assert report.encoder == info
    found = report.text_to_image
    assert (found.queries, found.images, found.gallery) == (8, 4, 4)
    # Seven captions find their image first; "red it is not" finds red, yellow, and then green and blue in a tie.
    assert found.r_at_1.value == 7 / 8 and found.r_at_5.value == 1.0
    assert found.r_at_1.low < 7 / 8 < found.r_at_1.high
    assert found.median_rank.value == 1
    # The image red ties with the caption "red it is not", which belongs to another image.
    assert report.image_to_text.r_at_1.value == 3 / 4
    assert (report.image_to_text.queries, report.image_to_text.gallery) == (4, 8)
    assert [(group.name, group.text_to_image.queries) for group in report.by_length] == [
        ("1 to 5 words", 7),
        ("16 words or more", 1),
    ]
    assert [
        (group.name, group.text_to_image.queries, group.text_to_image.r_at_1.value) for group in report.by_category
    ] == [("cold", 4, 3 / 4), ("other", 4, 3 / 4), ("warm", 4, 1.0)]
    assert all(group.text_to_image.gallery == 4 for group in report.by_category)
    (worst,) = report.worst
    assert (worst.caption, worst.own.id, worst.rank) == ("red it is not", "blue.png", 4)
    assert [hit.id for hit in worst.hits[:2]] == ["red.png", "yellow.png"]
    assert [(image.id, image.reason, image.captions) for image in report.rejected] == [
        ("broken.png", "not_an_image", 2)
    ]
    assert "skipped 1 unreadable images with 2 captions" in summary(report)


def test_a_report_is_committed_only_once(config: Config) -> None:
    workspace = Workspace(config.workspace)
    write_colour_bundle(workspace)
    report = evaluate_bundle(config)
    folder = workspace.local("evaluations", report.id)
    assert EvaluationReport.model_validate_json((folder / "report.json").read_bytes()) == report
    assert "red it is not" in (folder / "report.html").read_text(encoding="utf-8")
    assert evaluate_bundle(config) == report  # including its times


def test_captions_without_training_images_are_enough(config: Config, corpus: Path) -> None:
    write_colour_bundle(Workspace(config.workspace))
    captions = json.loads((corpus / "captions.json").read_text())
    captions["images"] = [image for image in captions["images"] if image["split"] == "dev"]
    captions["annotations"] = [entry for entry in captions["annotations"] if entry["caption"] != "white"]
    (corpus / "captions.json").write_text(json.dumps(captions))
    assert evaluate_bundle(config).text_to_image.gallery == 4


def test_without_heldout_images_the_error_names_the_settings(config: Config) -> None:
    write_colour_bundle(Workspace(config.workspace))
    nothing = config.model_copy(
        update={"data": config.data.model_copy(update={"heldout_splits": ("val",), "holdout": 0.0})}
    )
    with pytest.raises(UsageError, match=r"no captioned image is held out; data.heldout_splits is val"):
        evaluate_bundle(nothing)


def test_no_readable_heldout_image_is_an_error(config: Config, corpus: Path) -> None:
    write_colour_bundle(Workspace(config.workspace))
    for name in COLOURS:
        (corpus / "images" / f"{name}.png").write_bytes(f"not {name}".encode())
    with pytest.raises(UsageError, match=r"none of the 5 held-out images can be read"):
        evaluate_bundle(config)


def test_a_damaged_bundle_is_an_error(config: Config) -> None:
    workspace = Workspace(config.workspace)
    write_colour_bundle(workspace)
    (workspace.local("encoders", "colours") / TEXT_SAVED_MODEL / "saved_model.pb").unlink()
    with pytest.raises(JobError, match=r"text_encoder of encoder colours cannot be loaded.*train it again"):
        evaluate_bundle(config)


def test_a_bundle_without_both_saved_models_is_refused(config: Config) -> None:
    write_bundle(Workspace(config.workspace))  # without a text encoder
    with pytest.raises(UsageError, match="encoder tiny lacks the SavedModels of a trained encoder"):
        evaluate_bundle(config)


def test_the_encoder_that_matches_the_configuration_is_chosen(config: Config) -> None:
    workspace = Workspace(config.workspace)
    with pytest.raises(UsageError, match="run `searchforge train`"):
        choose_encoder(workspace, config)
    settings = config.train.model_dump(mode="json")
    write_colour_bundle(workspace, "other", {"settings": {**settings, "epochs": 99}})
    assert choose_encoder(workspace, config) == "other"  # the only encoder
    write_colour_bundle(workspace, "own", {"settings": {**settings, "ray_address": "elsewhere"}})
    assert choose_encoder(workspace, config) == "own"
    write_colour_bundle(workspace, "twin", {"settings": settings})
    with pytest.raises(UsageError, match=r"3 encoders \(other, own, twin\), of which 2 match .*--encoder"):
        choose_encoder(workspace, config)
