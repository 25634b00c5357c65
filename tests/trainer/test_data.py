"""Tests that unusable images are dropped and reported, and that too many of them stop training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from searchforge.config import Config, DataConfig
from searchforge.errors import UsageError
from trainer.data import Rejection, TrainingData, drop_rejected, load_data


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    """Ten images, one of which is an empty file."""
    (tmp_path / "images").mkdir()
    rows = []
    for index in range(10):
        (tmp_path / "images" / f"{index}.jpg").write_bytes(b"x" * index)
        rows.append({"image": f"{index}.jpg", "caption": "x", "split": "train" if index < 8 else "dev"})
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    section = DataConfig(captions=(str(tmp_path / "c.jsonl"),), images=str(tmp_path / "images"))
    return load_data(Config(workspace=str(tmp_path / "workspace"), data=section))


def _unreadable(data: TrainingData, *ids: str) -> list[Rejection]:
    keys = {image.id: image.content_hash for image in data.images}
    return [Rejection(keys[id], "truncated", "cut off") for id in ids]


def test_unreadable_images_of_both_sides_are_dropped_and_reported(
    data: TrainingData, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [item["id"] for item in data.rejected] == ["0.jpg"]
    remaining = drop_rejected(data, _unreadable(data, "3.jpg", "9.jpg"), 0.3)
    assert [image.id for image in remaining.train] == [f"{i}.jpg" for i in (1, 2, 4, 5, 6, 7)]
    assert [image.id for image in remaining.heldout] == ["8.jpg"]
    report = remaining.report()["images"]
    assert [(item["id"], item["reason"]) for item in report["rejected"]] == [
        ("0.jpg", "unreadable"),
        ("3.jpg", "truncated"),
        ("9.jpg", "truncated"),
    ]
    assert report["train"] + report["heldout"] + len(report["rejected"]) == 10
    assert "3 of 10 images cannot be read" in capsys.readouterr().err


def test_too_many_unreadable_images_stop_training(data: TrainingData) -> None:
    with pytest.raises(UsageError, match=r"3 of 10 images cannot be read .*exceeds data\.max_reject_fraction \(0\.2\)"):
        drop_rejected(data, _unreadable(data, "3.jpg", "9.jpg"), 0.2)


def test_without_rejections_nothing_is_dropped(data: TrainingData) -> None:
    remaining = drop_rejected(data, _unreadable(data), 0.1)
    assert (remaining.train, remaining.heldout, len(remaining.rejected)) == (data.train, data.heldout, 1)
