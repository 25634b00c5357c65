"""Tests that the estimated training time scales with the workload and with the speed of the machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from searchforge.config import TrainConfig
from trainer import estimate
from trainer.estimate import MachineSpeed, Workload
from trainer.towers import TowerSpec, load_image_tower, load_text_tower

SPEED = MachineSpeed(start=1.0, image=0.01, text=0.002, operation=1e-11)
WORK = Workload(image_passes=2000, captions=10_000, images=2000, batch=500, steps=4)
WIDTHS = (1712, 1536)


def _seconds(settings: TrainConfig | None = None, work: Workload = WORK, speed: MachineSpeed = SPEED) -> float:
    return estimate.estimate_seconds(settings or TrainConfig(), work, WIDTHS, speed)


def test_cached_features_take_no_time() -> None:
    cached = dataclasses.replace(WORK, image_passes=0, captions=0)
    assert _seconds() - _seconds(work=cached) == pytest.approx(estimate.POOL + 20 + 20)


def test_more_work_takes_longer() -> None:
    default = _seconds()
    assert _seconds(TrainConfig(epochs=60)) > default
    assert _seconds(TrainConfig(ensemble_size=1)) < default
    assert _seconds(TrainConfig(tune_text="full")) > default
    assert _seconds(work=dataclasses.replace(WORK, steps=8)) > default


def test_a_machine_half_as_fast_takes_twice_as_long() -> None:
    slower = MachineSpeed(*(2 * value for value in dataclasses.astuple(SPEED)))
    assert _seconds(speed=slower) == pytest.approx(2 * _seconds())


def test_this_machine_is_measured(tiny_image_model: Path, tiny_text_model: Path) -> None:
    towers = (
        load_image_tower(TowerSpec("image", f"saved_model:{tiny_image_model}")),
        load_text_tower(TowerSpec("text", f"saved_model:{tiny_text_model}")),
    )
    speed = estimate.measure_speed(towers, Path("no such image").read_bytes, ["a text"], workers=2)
    assert all(value > 0 for value in dataclasses.astuple(speed))


@pytest.mark.parametrize(("seconds", "text"), [(1, "10 s"), (84, "80 s"), (236, "4 min"), (9000, "2.5 h")])
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert estimate.format_duration(seconds) == text
