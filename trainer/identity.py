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
    trained = bundle.report.get("settings")
    if not isinstance(trained, dict) or bundle.report.get("version", VERSION) != VERSION:
        return False
    return {key: value for key, value in trained.items() if key not in FREE} == settings.model_dump(
        mode="json", exclude=FREE
    )
