"""Tests that TensorBoard and an image library can read the training curves."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainer.evaluation import curves

HISTORY = [
    {"epoch": epoch, "loss": 5.0 / epoch, "learning_rate": 0.002, "temperature": 0.05, "seconds": 3.0}
    for epoch in (1, 2, 3)
]


def test_tensorboard_reads_every_metric_of_an_epoch(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    curves.write(tmp_path, HISTORY)
    events = EventAccumulator(str(tmp_path / curves.LOGS))
    events.Reload()
    assert set(events.Tags()["tensors"]) == {"loss", "learning_rate", "temperature", "seconds"}
    losses = [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors("loss")]
    assert losses == [(1, 5.0), (2, 2.5), (3, pytest.approx(5 / 3))]


def test_the_png_contains_the_curve(tmp_path: Path) -> None:
    curves.write(tmp_path, HISTORY)
    with Image.open(tmp_path / curves.PNG) as image:
        assert image.format == "PNG"
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24)}
    assert (0x3B, 0x82, 0xD0) in colours
