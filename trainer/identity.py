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
    report = bundle.report
    return report.get("version", VERSION) == VERSION and not settings.changed_since(report.get("settings"), FREE)
