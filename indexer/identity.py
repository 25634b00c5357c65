"""Decides whether an index matches a configuration; imports nothing heavy, so that the question is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchforge.config import IndexConfig

FORMAT_VERSION = 2
"""Version of build.json and USER_INFO. Part of a searcher's id, so that a change of the packing changes the id."""

NON_TRAINING_KEYS = {"reuse_from", "max_drift", "runner", "beam_options"}
"""Configuration keys that do not affect what is trained."""


def training_config(config: IndexConfig) -> dict[str, Any]:
    """Returns the settings that affect what is trained."""
    return config.model_dump(mode="json", exclude=NON_TRAINING_KEYS)


def changed_settings(build: Mapping[str, Any], config: IndexConfig) -> list[str]:
    """Returns the keys, sorted, that affect what is trained and differ from those of a build (its build.json)."""
    return config.changed_since(build.get("config"), NON_TRAINING_KEYS)
