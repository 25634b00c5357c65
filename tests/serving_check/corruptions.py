"""All corruptions that the check must catch, by name."""

from __future__ import annotations

from tests.serving_check import corrupt_files, corrupt_indexes, corrupt_items, corrupt_models
from tests.serving_check.specimen import Corruption, registered

MODULES = (corrupt_files, corrupt_models, corrupt_indexes, corrupt_items)
"""Modules that register their corruptions when they are imported."""

CORRUPTIONS: dict[str, Corruption] = registered()
