"""What makes an encoder the one that a configuration asks for; light to import, so that asking is cheap."""

from __future__ import annotations

from searchforge.artifacts.encoder import EncoderInfo
from searchforge.config import TrainConfig

VERSION = 2
"""Part of every encoder's id: raise it when the same settings train or export something else."""

FREE = {"ray_address"}
"""Settings that do not change what is trained."""


def has_settings(bundle: EncoderInfo, settings: TrainConfig) -> bool:
    """Whether a bundle was trained with these settings by this version, on whatever data."""
    return bundle.report.get("version", VERSION) == VERSION and same_settings(bundle.report.get("settings"), settings)


def same_settings(trained: object, settings: TrainConfig) -> bool:
    """Whether settings train what those in an encoder's report trained; keys that are not in it had their defaults."""
    if not isinstance(trained, dict):
        return False
    known = TrainConfig().model_dump(mode="json", exclude=FREE)
    return {**known, **{key: value for key, value in trained.items() if key not in FREE}} == settings.model_dump(
        mode="json", exclude=FREE
    )
