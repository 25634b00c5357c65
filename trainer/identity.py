"""Decides whether an encoder matches a configuration; imports nothing heavy, so that the question is cheap."""

from __future__ import annotations

from searchforge.artifacts.encoder import EncoderInfo
from searchforge.config import TrainConfig

VERSION = 2
"""Part of every encoder's id; raise it whenever the same settings would train or export a different encoder."""

IGNORED_SETTINGS = {"ray_address"}
"""Settings that have no influence on the trained encoder."""


def has_settings(bundle: EncoderInfo, settings: TrainConfig) -> bool:
    """Returns whether this version trained the bundle with these settings, on any data."""
    report = bundle.report
    if report.get("version", VERSION) != VERSION:
        return False
    return not settings.changed_since(report.get("settings"), IGNORED_SETTINGS)
