"""Tests that a bundle's text encoder is restored exactly, or with a clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from searchforge.artifacts.encoder import TEXT_SAVED_MODEL, EncoderInfo
from searchforge.config import TrainConfig
from searchforge.errors import JobError, UsageError
from trainer.export.encoders import TextEncoder
from trainer.export.restore import restore_text_encoder
from trainer.model.dual_encoder import DualEncoder
from trainer.model.ensemble import combine_heads
from trainer.towers import TextTower, load_text_tower, tower_specs

DIM = 16
TEXTS = ["a red dog on sand", "blue", "number 7 is all green"]


@pytest.fixture(scope="module")
def model(tiny_text_model: Path) -> str:
    """Name of a text tower with a built-in tokenizer."""
    return f"saved_model:{tiny_text_model}"


def _export(folder: Path, settings: TrainConfig, tower: TextTower) -> tuple[EncoderInfo, TextEncoder]:
    """Exports a text encoder with random head weights, as training does; returns its description and the encoder."""
    random = np.random.default_rng(0)
    images, texts = (random.normal(size=(40, width)).astype(np.float32) for width in (5, tower.width))
    _, head = combine_heads(
        DualEncoder(settings, 5, tower.width), images, texts, DIM, settings.hubness_correction, seed=0
    )
    encoder = TextEncoder(tower, head)
    encoder.save(folder / TEXT_SAVED_MODEL)
    info = EncoderInfo(
        id="exported",
        fingerprint="",
        preprocessing="",
        dim=DIM,
        image_tower="",
        text_tower=settings.text_tower,
        sequence_length=tower.sequence_length,
        files={},
        report={"settings": settings.model_dump()},
    )
    return info, encoder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ensemble_size": 1, "hubness_correction": 0.0},
        {"preset": "recipe2022", "ensemble_size": 2, "hubness_correction": 0.0},
    ],
)
def test_heads_of_every_structure_are_restored(changes: dict[str, Any], model: str, tmp_path: Path) -> None:
    settings = TrainConfig(text_tower=model, dim=DIM, **changes)
    info, encoder = _export(tmp_path, settings, load_text_tower(tower_specs(settings, TEXTS)[1]))
    restored = restore_text_encoder(info, tmp_path)
    np.testing.assert_allclose(restored(tf.constant(TEXTS)), encoder(tf.constant(TEXTS)), atol=1e-6)
    assert restored.quantizations == encoder.quantizations


def test_a_mismatching_tower_or_settings_are_errors(model: str, tmp_path: Path) -> None:
    settings = TrainConfig(text_tower=model, dim=DIM, ensemble_size=1)
    info, _ = _export(tmp_path, settings, load_text_tower(tower_specs(settings, TEXTS)[1]))

    def trained_with(**changes: Any) -> EncoderInfo:
        return info.model_copy(update={"report": {"settings": {**info.report["settings"], **changes}}})

    with pytest.raises(UsageError, match="of exported cannot be restored: tower 'saved_model:/gone' cannot"):
        restore_text_encoder(trained_with(text_tower="saved_model:/gone"), tmp_path)
    with pytest.raises(UsageError, match="has no training settings"):
        restore_text_encoder(info.model_copy(update={"report": {}}), tmp_path)
    with pytest.raises(JobError, match=r"weights in .*variables do not match the text encoder of exported"):
        restore_text_encoder(trained_with(ensemble_size=2), tmp_path)
