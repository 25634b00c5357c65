"""Estimates how long training takes, from a measurement of this machine that takes a second or two.

The measurement times the start of Python processes (Ray starts about a dozen), the towers on a small batch, and a
matrix product of the heads' size. Other load on the machine slows down all three.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from searchforge.config import DEFAULT_MAX_PIXELS, TrainConfig
from searchforge.image_decoding import RejectedInput
from searchforge.processes.fork_server import python_path
from trainer.export import tflite_parity
from trainer.fit import finetuning
from trainer.model.projection_heads import HIDDEN
from trainer.towers import ImageTower, TextTower

PROBE = "import ray"
"""Python code of the process whose start is timed."""

RAY, POOL, TRAIN, EXPORT = 7.0, 10.0, 22.0, 25.0
"""Durations in units of a probe's start: Ray itself, a pool of TensorFlow workers, Ray Train up to its first step, and
export with parity checks, not counting the encoders' own inference time. The ratios hold on most machines."""

BACKWARD = 3.0
"""Cost of a pass with gradients, relative to one without."""

INPUTS = 16
"""Batch size with which the towers are measured."""


@dataclass(frozen=True)
class MachineSpeed:
    """Wall time in seconds of the basic operations, with all cores available.

    Attributes:
      start: Starting one Python process per worker at once, but at most one per core.
      image: Decoding one image and running it through its tower.
      text: Running one caption through its tower.
      operation: One floating-point operation of the heads.
    """

    start: float
    image: float
    text: float
    operation: float


@dataclass(frozen=True)
class Workload:
    """Amount of work of a training run.

    Attributes:
      image_passes: Number of image tower passes, one per image and augmentation.
      captions: Number of captions to run through the text tower.
      images: Number of training images.
      batch: Number of images per step.
      steps: Number of steps per epoch.
    """

    image_passes: int
    captions: int
    images: int
    batch: int
    steps: int


def measure_speed(
    towers: tuple[ImageTower, TextTower], read_image: Callable[[], bytes], texts: Sequence[str], workers: int
) -> MachineSpeed:
    """Measures this machine; takes a second or two when it is otherwise idle.

    Args:
      read_image: Reads one of the training images; the decoding time of an unreadable one counts as zero.
      texts: One or more captions.

    Raises:
      tf.errors.OpError, ValueError: A tower does not accept a batch of INPUTS.
    """
    preprocessing = towers[0].preprocessing
    pixels = tf.zeros([INPUTS, preprocessing.height, preprocessing.width, 3])
    captions = tf.constant([texts[i % len(texts)] for i in range(INPUTS)])

    def decode() -> None:
        try:
            preprocessing.pixels(read_image(), DEFAULT_MAX_PIXELS)
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


def estimate_seconds(settings: TrainConfig, work: Workload, widths: tuple[int, int], speed: MachineSpeed) -> float:
    """Returns the estimated wall time of training.

    Args:
      widths: Lengths of the image features and of the text features.
    """
    total = RAY * speed.start
    if work.image_passes or work.captions:
        total += POOL * speed.start + work.image_passes * speed.image + work.captions * speed.text
    total += TRAIN * speed.start + settings.epochs * work.steps * _step_seconds(settings, work, widths, speed)
    if finetuning.is_enabled(settings):
        # A fine-tuned tower runs once without and once with gradients in each epoch, and finally over all inputs.
        images = speed.image * (settings.tune_image != finetuning.FROZEN)
        texts = speed.text * settings.captions_per_image * (settings.tune_text != finetuning.FROZEN)
        total += settings.tune_epochs * work.images * (1 + BACKWARD) * (images + texts)
        total += (TRAIN + POOL) * speed.start + work.images * (images + texts)
    return total + EXPORT * speed.start + tflite_parity.SAMPLES * 2 * (speed.image + speed.text)


def format_duration(seconds: float) -> str:
    """Formats a duration: `50 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _step_seconds(settings: TrainConfig, work: Workload, widths: tuple[int, int], speed: MachineSpeed) -> float:
    """Returns the estimated seconds per step for all ensemble members."""
    hidden = 0 if settings.preset == "recipe2022" else HIDDEN
    weights = [width * (settings.dim + hidden) + hidden * settings.dim for width in widths]
    passes = work.batch * (weights[0] + settings.captions_per_image * weights[1])
    return settings.ensemble_size * BACKWARD * 2 * passes * speed.operation


def _time_second_call(work: Callable[[], Any]) -> float:
    """Calls a function twice and returns the seconds of the second call; the first one warms up."""
    work()
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _time_process_start(count: int) -> float:
    start = time.monotonic()
    command, environment = [sys.executable, "-c", PROBE], {**os.environ, "PYTHONPATH": python_path()}
    count, devnull = min(count, os.cpu_count() or 1), subprocess.DEVNULL
    children = [subprocess.Popen(command, env=environment, stdout=devnull, stderr=devnull) for _ in range(count)]
    for child in children:
        child.wait()
    return time.monotonic() - start
