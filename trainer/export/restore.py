"""Restores the text encoder of a committed bundle, so that it can be exported again."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from pydantic import ValidationError

from searchforge.artifacts.encoder import TEXT_SAVED_MODEL, EncoderInfo
from searchforge.config import TrainConfig
from searchforge.errors import JobError, UsageError
from trainer.export.encoders import TextEncoder
from trainer.model.dual_encoder import new_heads
from trainer.model.ensemble import uninitialized_text_head
from trainer.towers import load_text_tower, tower_specs


def restore_text_encoder(info: EncoderInfo, bundle: Path) -> TextEncoder:
    """Rebuilds the text encoder that a bundle was exported from, and loads the bundle's weights into it.

    Args:
      info: The bundle's description.
      bundle: Local folder of the bundle.

    Raises:
      UsageError: The description lacks valid training settings, or the tower is no longer available.
      JobError: The bundle's weights do not match the tower and the heads of the settings.
    """
    try:
        settings = TrainConfig.model_validate(info.report["settings"])
    except (KeyError, ValidationError) as error:
        raise UsageError(
            f"the text encoder of {info.id} cannot be restored, because encoder.json has no training settings that "
            f"this version supports ({type(error).__name__}); train it again"
        ) from error
    length = info.sequence_length or None  # None: the tower has a built-in tokenizer
    _, spec = tower_specs(settings.model_copy(update={"sequence_length": length}), ())
    try:
        tower = load_text_tower(spec)
    except UsageError as error:
        raise UsageError(f"the text encoder of {info.id} cannot be restored: {error}") from error
    heads = new_heads(settings, "text", tower.width)
    encoder = TextEncoder(tower, uninitialized_text_head(heads, settings.dim, settings.hubness_correction))
    weights = bundle / TEXT_SAVED_MODEL / "variables" / "variables"
    try:
        tf.train.Checkpoint(root=encoder).read(str(weights)).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". Showing")[0]
        raise JobError(
            f"the weights in {weights.parent} do not match the text encoder of {info.id} with the tower "
            f"{info.text_tower!r} ({reason}); provide the tower that it was trained with, or train it again"
        ) from error
    return encoder
