"""Tests that combining heads averages their scores, and that hubness correction penalises hubs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from searchforge.config import TrainConfig
from trainer.model import ensemble
from trainer.model.dual_encoder import DualEncoder
from trainer.model.ensemble import combine_heads

PAIRS, DIM = 3, 8
WIDTHS = (12, 10)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return DualEncoder(TrainConfig(dim=DIM, ensemble_size=PAIRS, temperature=0.05, seed=3), *WIDTHS)


def features(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)


IMAGES, TEXTS = features(60, WIDTHS[0]), features(200, WIDTHS[1])


def mean_scores(model: DualEncoder) -> np.ndarray:
    pairs = zip(model.image_heads, model.text_heads, strict=True)
    return np.mean([text(TEXTS).numpy() @ image(IMAGES).numpy().T for image, text in pairs], axis=0)


def test_without_reduction_scores_are_the_members_mean(model: DualEncoder) -> None:
    image_head, text_head = combine_heads(model, IMAGES, TEXTS, PAIRS * DIM, hubness_correction=0.0, seed=0)
    np.testing.assert_allclose(text_head(TEXTS).numpy() @ image_head(IMAGES).numpy().T, mean_scores(model), atol=1e-5)


def test_a_single_pair_without_correction_is_unchanged() -> None:
    model = DualEncoder(TrainConfig(dim=DIM, ensemble_size=1), *WIDTHS)
    image_head, text_head = combine_heads(model, IMAGES, TEXTS, DIM, hubness_correction=0.0, seed=0)
    np.testing.assert_array_equal(image_head(IMAGES), model.image_heads[0](IMAGES))
    np.testing.assert_array_equal(text_head(TEXTS), model.text_heads[0](TEXTS))


@pytest.mark.parametrize("dim", [6, DIM, PAIRS * DIM + 1])
def test_embeddings_have_the_requested_dimension_and_unit_length(model: DualEncoder, dim: int) -> None:
    for head, inputs in zip(combine_heads(model, IMAGES, TEXTS, dim, 0.8, seed=0), (IMAGES, TEXTS), strict=True):
        embedded = head(tf.constant(inputs)).numpy()
        assert embedded.shape == (len(inputs), dim)
        np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, atol=1e-5)


def test_the_similarity_to_the_bank_is_subtracted_from_scores(model: DualEncoder) -> None:
    strength = 0.5
    image_head, text_head = combine_heads(model, IMAGES, TEXTS, PAIRS * DIM + 1, strength, seed=0)
    scores = mean_scores(model)
    similarity = 0.05 * np.log(np.exp(scores / 0.05).mean(0))
    expected = scores - strength * (similarity - similarity.mean())
    actual = text_head(TEXTS).numpy() @ image_head(IMAGES).numpy().T / (1 - ensemble.TEXT_HUBNESS**2) ** 0.5
    # Normalising again shrinks an image's scores by about half of its squared hubness value.
    np.testing.assert_allclose(actual, expected, atol=0.02)
    assert np.abs(scores - expected).max() > 0.05


def test_combining_is_deterministic(model: DualEncoder) -> None:
    heads = [combine_heads(model, IMAGES, TEXTS, DIM, 0.8, seed=1) for _ in range(2)]
    for first, second in zip(*heads, strict=True):
        for one, other in zip(first.variables, second.variables, strict=True):
            np.testing.assert_array_equal(one, other)
