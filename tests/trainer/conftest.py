"""Session fixtures of the training tests: a local Ray cluster, tiny SavedModels, and cached towers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trainer.towers import ImageTower, TextTower, TowerSpec

WORKERS = 2
"""Maximum number of Ray workers per test."""


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray cluster with enough CPUs for `WORKERS` workers, and GPUs that only Ray knows."""
    from searchforge.config import TrainConfig
    from trainer.ray_cluster import ray_cluster

    with ray_cluster(TrainConfig(workers=WORKERS), gpus=WORKERS):
        yield


@pytest.fixture(scope="session")
def tiny_image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SavedModel of an image tower for 16 x 16 pixels; tests must not modify it."""
    from tests.trainer import tiny_towers

    return tiny_towers.save_fixed_image_model(tmp_path_factory.mktemp("image") / "model")


@pytest.fixture(scope="session")
def tiny_text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SavedModel of a text tower whose features sum to the number of words; tests must not modify it."""
    from tests.trainer import tiny_towers

    return tiny_towers.save_text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="session")
def shared_image_tower() -> Callable[[TowerSpec], ImageTower]:
    """Loader that caches image towers in this process; tests must not modify the towers."""
    from trainer.towers import load_image_tower

    return functools.cache(load_image_tower)


@pytest.fixture(scope="session")
def shared_text_tower() -> Callable[[TowerSpec], TextTower]:
    """Loader that caches text towers in this process; tests must not modify the towers."""
    from trainer.towers import load_text_tower

    return functools.cache(load_text_tower)
