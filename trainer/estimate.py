"""Estimates how long a training takes, from what this machine did in the second before.

Measured are the start of Python processes, since Ray starts about a dozen of them, the towers on a few inputs, and a
product of matrices of the heads' size. A machine that is busy with other things takes longer for all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from searchforge.config import DEFAULT_MAX_PIXELS, TrainConfig
from searchforge.preprocessing import RejectedInput
from searchforge.processes.fork_server import python_path
from trainer.export import tflite_parity
from trainer.fit import finetuning
from trainer.model.projection_heads import HIDDEN
from trainer.towers import ImageTower, TextTower

PROBE = "import ray"
"""What a process does whose start is measured."""

RAY, POOL, TRAIN, EXPORT = 7.0, 10.0, 22.0, 25.0
"""How many times the start of a probe these take: Ray, a pool of workers with TensorFlow, Ray Train up to its first
step, and export with proof but for the encoders' own time. Ratios of work, which are much the same on every machine."""

BACKWARD = 3.0
"""How many times as much a pass with gradients costs as one without."""

INPUTS = 16
"""Inputs of the batch that a tower is measured with."""


@dataclass(frozen=True)
class MachineSpeed:
    """What this machine takes, in seconds of wall time while all cores may work.

    Attributes:
      start: to start Python processes at once, one for each worker but at most one for each core.
      image: to decode an image and run it through the tower.
      text: to run a caption through its tower.
      operation: for one floating-point operation of the heads.
    """

    start: float
    image: float
    text: float
    operation: float


@dataclass(frozen=True)
class Workload:
    """What a training has to do.

    Attributes:
      image_passes: images that go through their tower, once for each view.
      captions: that go through theirs.
      images: training images.
      batch: images of a step.
      steps: of an epoch.
    """

    image_passes: int
    captions: int
    images: int
    batch: int
    steps: int


def measure_speed(
    towers: tuple[ImageTower, TextTower], image: Path, texts: Sequence[str], workers: int
) -> MachineSpeed:
    """Measures this machine; takes a second or two on a quiet one.

    Args:
      image: one of the training images; one that cannot be read counts as decoded in no time.
      texts: captions, at least one.

    Raises:
      tf.errors.OpError, ValueError: a tower does not take a batch of INPUTS.
    """
    preprocessing = towers[0].preprocessing
    pixels = tf.zeros([INPUTS, preprocessing.height, preprocessing.width, 3])
    captions = tf.constant([texts[i % len(texts)] for i in range(INPUTS)])

    def decode() -> None:
        try:
            preprocessing.pixels(image.read_bytes(), DEFAULT_MAX_PIXELS)
        except (OSError, RejectedInput):
            return

    factors = tf.ones([256, HIDDEN]), tf.ones([HIDDEN, HIDDEN])
    operations = 2 * 256 * HIDDEN * HIDDEN
    return MachineSpeed(
        start=_time_process_start(workers),
        image=_time_second_call(lambda: towers[0](pixels)) / INPUTS + _time_second_call(decode) / workers,
        text=_time_second_call(lambda: towers[1](captions)) / INPUTS,
        operation=_time_second_call(lambda: tf.matmul(*factors).numpy()) / operations,
    )


def estimate_seconds(settings: TrainConfig, amount: Workload, widths: tuple[int, int], speed: MachineSpeed) -> float:
    """Returns how long a training takes.

    Args:
      widths: of the features of images and of captions.
    """
    found = RAY * speed.start
    if amount.image_passes or amount.captions:
        found += POOL * speed.start + amount.image_passes * speed.image + amount.captions * speed.text
    found += TRAIN * speed.start + settings.epochs * amount.steps * _step_seconds(settings, amount, widths, speed)
    if finetuning.is_enabled(settings):
        # A tuned tower runs once without gradients and once with them, and afterwards over everything.
        images = speed.image * (settings.tune_image != finetuning.FROZEN)
        texts = speed.text * settings.captions_per_image * (settings.tune_text != finetuning.FROZEN)
        found += settings.tune_epochs * amount.images * (1 + BACKWARD) * (images + texts)
        found += (TRAIN + POOL) * speed.start + amount.images * (images + texts)
    return found + EXPORT * speed.start + tflite_parity.SAMPLES * 2 * (speed.image + speed.text)


def format_duration(seconds: float) -> str:
    """Returns a duration for people: `50 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _step_seconds(settings: TrainConfig, amount: Workload, widths: tuple[int, int], speed: MachineSpeed) -> float:
    """Seconds of a step of all pairs of heads."""
    hidden = 0 if settings.preset == "recipe2022" else HIDDEN
    weights = [width * (settings.dim + hidden) + hidden * settings.dim for width in widths]
    passes = amount.batch * (weights[0] + settings.captions_per_image * weights[1])
    return settings.ensemble_size * BACKWARD * 2 * passes * speed.operation


def _time_second_call(work: Callable[[], Any]) -> float:
    """Seconds of the second of two calls: the first one prepares what later ones use."""
    work()
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _time_process_start(count: int) -> float:
    start = time.monotonic()
    command, environment = [sys.executable, "-c", PROBE], {**os.environ, "PYTHONPATH": python_path()}
    count, quiet = min(count, os.cpu_count() or 1), subprocess.DEVNULL
    children = [subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) for _ in range(count)]
    for child in children:
        child.wait()
    return time.monotonic() - start
