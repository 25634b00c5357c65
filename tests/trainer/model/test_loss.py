"""Tests that losses cover the global batch and match their definitions."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from searchforge.config import TrainConfig
from tests.trainer.model import loss_worker
from trainer.model.dual_encoder import DualEncoder
from trainer.model.loss import info_nce, soft_target_loss


@pytest.fixture(scope="module")
def results(tiny_image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the results of a single worker, in this process, and of each of two workers."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", "first", "second")}
    tower, random = tmp_path_factory.mktemp("tower") / "model", np.random.default_rng(0)
    shutil.copytree(tiny_image_model, tower)
    for index in range(loss_worker.IMAGES):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(tower / f"{index}.png")
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (first, second)]
    pair = [_start(folders[name], rank, addresses, tower) for rank, name in enumerate(("first", "second"))]
    loss_worker.run(tf.distribute.OneDeviceStrategy("cpu:0"), folders["alone"], 0, 1, str(tower))
    assert [process.wait(180) for process in pair] == [0, 0]
    return folders


@pytest.mark.parametrize("preset", ["best", "recipe2022", "tower"])
def test_two_workers_equal_one_with_the_whole_batch(preset: str, results: dict[str, Path]) -> None:
    alone, first, second = (dict(np.load(folder / f"{preset}.npz")) for folder in results.values())
    assert len(alone) > 8
    for name, expected in alone.items():
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(first[name], expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(second[name], expected, atol=1e-5, err_msg=name)
    assert max(np.abs(value).max() for value in alone.values()) > 1e-2


def _start(folder: Path, rank: int, workers: list[str], tower: Path) -> subprocess.Popen[bytes]:
    task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(task), "TF_CPP_MIN_LOG_LEVEL": "3"}
    root = Path(__file__).resolve().parents[3]
    command = [
        sys.executable,
        "-m",
        "tests.trainer.model.loss_worker",
        str(folder),
        str(rank),
        str(len(workers)),
        str(tower),
    ]
    return subprocess.Popen(command, env=environment, cwd=root)


def test_info_nce_matches_its_definition() -> None:
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(4, 6)).astype(np.float32), random.normal(size=(4, 2, 6)).astype(np.float32)
    ids = np.arange(8, dtype=np.int32).reshape(4, 2)
    logits = np.einsum("ikd,jd->ikj", texts, images) / 0.5
    expected = []
    for i in range(4):
        for k in range(2):
            others = np.exp(np.delete(logits, i, 0)[:, :, i]).sum()  # captions of other images
            expected.append(-np.log(np.exp(logits[i, k, i]) / (np.exp(logits[i, k, i]) + others)))
            expected.append(-np.log(np.exp(logits[i, k, i]) / np.exp(logits[i, k]).sum()))
    loss = info_nce(tf.constant(images), tf.constant(texts), tf.constant(ids), tf.constant(0.5))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_identical_captions_are_not_negatives() -> None:
    images = tf.constant([[1.0, 0.0], [1.0, 0.0]])
    texts = tf.constant([[[1.0, 0.0]], [[1.0, 0.0]]])
    different = info_nce(images, texts, tf.constant([[0], [1]]), tf.constant(0.1))
    same = info_nce(images, texts, tf.constant([[7], [7]]), tf.constant(0.1))
    assert float(different) == pytest.approx(np.log(2))
    assert float(same) == pytest.approx(0.0, abs=1e-6)


def test_soft_targets_of_dissimilar_pairs_are_one_hot() -> None:
    basis = tf.eye(5)
    loss = soft_target_loss(basis, basis[:, tf.newaxis], tf.zeros([5, 1], tf.int32), tf.constant(0.05))
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


def test_dropout_of_an_image_and_its_caption_is_independent() -> None:
    config = TrainConfig(preset="recipe2022", dim=64, captions_per_image=1, mixup=0.0, ensemble_size=2)
    model = DualEncoder(config, 64, 64)
    for head in (*model.image_heads, *model.text_heads):
        for name, variable in zip(("bias", "kernel"), head._second[::-1], strict=True):  # type: ignore[attr-defined]
            variable.assign(tf.ones_like(variable) if name == "bias" else tf.zeros_like(variable))
    dropped = []

    def spy(images: tf.Tensor, texts: tf.Tensor, *_others: tf.Tensor) -> tf.Tensor:
        dropped.append((np.sign(images.numpy()), np.sign(texts[:, 0].numpy())))
        return tf.constant(0.0)

    model._loss = spy
    zeros = tf.zeros([50, 64])
    strategy = tf.distribute.OneDeviceStrategy("cpu:0")
    strategy.run(
        lambda: model.loss(
            zeros[:, tf.newaxis], zeros[:, tf.newaxis, tf.newaxis], tf.zeros([50, 1, 1], tf.int32), tf.constant([1, 2])
        )
    )
    masks = [mask for pair in dropped for mask in pair]
    assert len(masks) == 4
    for one, other in itertools.combinations(masks, 2):
        same = (one == other).mean()
        assert 0.75 < same < 0.9  # 0.82 for independent masks with a dropout rate of 0.1, and 1 for a shared mask
