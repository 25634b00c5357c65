"""Tests fine-tuning: exact gradients in micro-batches, changes to the configured part only, and resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from searchforge.config import TrainConfig
from searchforge.errors import UsageError
from trainer.features.batches import TrainingSet
from trainer.fit import finetuning
from trainer.fit.finetuning import FinetuningRun, FinetuningTask
from trainer.model.dual_encoder import DualEncoder
from trainer.towers import ImageTower, TextTower, TowerSpec, load_text_tower
from trainer.towers.layers import mixed_precision

IMAGES, CAPTIONS = 7, 2
TEXT_SPEC = TowerSpec("text", "pypi:minilm-l6@2", "last", 8)


@pytest.fixture(scope="module")
def image_spec(tiny_image_model: Path) -> TowerSpec:
    return TowerSpec("image", f"saved_model:{tiny_image_model}")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = [str(folder / f"{index}.png") for index in range(IMAGES)]
    for path in found:
        Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return found


@pytest.fixture(scope="module")
def frozen(
    image_spec: TowerSpec,
    shared_image_tower: Callable[[TowerSpec], ImageTower],
    shared_text_tower: Callable[[TowerSpec], TextTower],
) -> tuple[ImageTower, TextTower]:
    """Both towers; tests must not modify them."""
    return shared_image_tower(image_spec), shared_text_tower(TEXT_SPEC)


Frozen = tuple[ImageTower, TextTower]


def _task(image_spec: TowerSpec, paths: list[str], frozen: Frozen, **settings: Any) -> FinetuningTask:
    config = TrainConfig(dim=16, ensemble_size=2, batch_size=IMAGES, workers=1, **settings)
    texts = [f"caption {'word ' * (i % 3)}{i}" for i in range(CAPTIONS * IMAGES)]
    image_tower, text_tower = frozen
    pixels = np.stack([np.asarray(Image.open(path).resize((16, 16)), np.float32) for path in paths])
    data = TrainingSet(
        images=image_tower(pixels / 255.0).numpy()[np.newaxis],
        texts=text_tower(tf.constant(texts)).numpy(),
        captions=np.arange(CAPTIONS * IMAGES, dtype=np.int32).reshape(IMAGES, CAPTIONS),
        caption_counts=np.full(IMAGES, CAPTIONS, np.int32),
    )
    model = DualEncoder(config, image_tower.width, text_tower.width)
    return FinetuningTask(config, data, (image_spec, TEXT_SPEC), paths, texts, model.state())


def _run(task: FinetuningTask) -> FinetuningRun:
    return FinetuningRun(task, tf.distribute.OneDeviceStrategy("cpu:0"), steps=1)


def _batch(task: FinetuningTask) -> Any:
    return task.batch(np.arange(IMAGES), np.random.default_rng(0), slice(0, IMAGES))


def test_micro_batches_have_the_gradient_of_the_whole_batch(
    image_spec: TowerSpec, paths: list[str], frozen: Frozen
) -> None:
    parts = {"tune_image": "full", "tune_text": "full"}
    task = _task(image_spec, paths, frozen, tune_micro_batch=3, **parts)
    loss, gradients = _run(task).gradients(*_batch(task), None)

    # Compute the same with a single tape.
    image_tower, text_tower = frozen
    model = DualEncoder(task.config, image_tower.width, text_tower.width)
    model.load(task.heads)
    groups = [model.trainable_variables, *(list(t.tunable_variables().values()) for t in (image_tower, text_tower))]
    batch_paths, texts, ids = _batch(task)
    pixels = np.stack([image_tower.preprocessing.pixels(Path(path).read_bytes(), 10**6) for path in batch_paths])

    def whole() -> Any:
        with tf.GradientTape() as tape:
            for group in groups:
                tape.watch(group)
            loss = loss_of_whole_batch()
        return loss, tape.gradient(loss, groups, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def loss_of_whole_batch() -> tf.Tensor:
        images = image_tower(tf.cast(pixels, tf.float32) / 255.0)[:, tf.newaxis]
        features = tf.reshape(text_tower(tf.constant(texts.ravel())), [IMAGES, 1, CAPTIONS, -1])
        return model.loss(images, features, ids[:, np.newaxis], None)

    expected_loss, expected = tf.distribute.OneDeviceStrategy("cpu:0").run(whole)
    np.testing.assert_allclose(loss, expected_loss, atol=1e-5)
    for actual_group, expected_group in zip(gradients, expected, strict=True):
        assert max(np.abs(tf.convert_to_tensor(g)).max() for g in expected_group) > 1e-4
        for a, b in zip(actual_group, expected_group, strict=True):
            np.testing.assert_allclose(a, tf.convert_to_tensor(b), atol=1e-5)


def test_only_the_configured_part_changes(image_spec: TowerSpec, paths: list[str], frozen: Frozen) -> None:
    task = _task(image_spec, paths, frozen, tune_text="last_1_layers", tune_text_learning_rate=1e-2)
    run = _run(task)
    before = frozen[1].tunable_variables()
    for number in range(2):  # the learning rate starts at 0
        run.step(*_batch(task), np.array([0, number], np.int32))
    state = run.state()
    text = {k.removeprefix("result/text/"): v for k, v in state.items() if k.startswith("result/text/")}
    assert text and all(name.startswith("encoder.layer.1.") for name in text)
    assert all(np.abs(value - before[name]).max() > 0 for name, value in text.items())
    assert not any(name.startswith("result/image/") for name in state)
    whole = load_text_tower(TEXT_SPEC)
    fingerprint, others = (
        whole.fingerprint,
        {k: v.numpy() for k, v in whole.tunable_variables().items() if k not in text},
    )
    whole.assign(text)
    assert whole.fingerprint != fingerprint
    for name, value in others.items():
        np.testing.assert_array_equal(whole.tunable_variables()[name], value, err_msg=name)


def test_a_resumed_run_equals_an_uninterrupted_one(image_spec: TowerSpec, paths: list[str], frozen: Frozen) -> None:
    task = _task(image_spec, paths, frozen, tune_image="full", tune_image_learning_rate=1e-2, tune_micro_batch=4)

    def steps(run: FinetuningRun, numbers: range) -> None:
        for number in numbers:
            run.step(*_batch(task), np.array([0, number], np.int32))

    whole, resumed = _run(task), _run(task)
    steps(whole, range(2))
    resumed.load(whole.state())
    for run in (whole, resumed):
        steps(run, range(2, 3))
    expected, actual = whole.state(), resumed.state()
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_parts_of_the_packaged_towers(shared_image_tower: Callable[[TowerSpec], ImageTower]) -> None:
    image_tower = shared_image_tower(TowerSpec("image", "pypi:efficientnet-lite0"))
    names = finetuning.tunable_variables(image_tower, "last_2_blocks")
    assert {name.rsplit(".", 2)[0] if "blocks" in name else "head" for name in names} == {
        "_blocks.14",
        "_blocks.15",
        "head",
    }
    assert len(finetuning.tunable_variables(image_tower, "full")) == len(image_tower.variables)
    assert finetuning.tunable_variables(image_tower, "frozen") == {}


def test_a_missing_part_is_refused(frozen: Frozen, tiny_text_model: Path) -> None:
    image_tower, text_tower = frozen
    with pytest.raises(UsageError, match=r"train\.tune_image is last_2_blocks, but .* fine-tune it in full"):
        finetuning.check_settings(TrainConfig(tune_image="last_2_blocks"), image_tower, text_tower)
    with pytest.raises(UsageError, match=r"train\.tune_text is last_9_layers, but this MiniLM has 2 layers"):
        finetuning.check_settings(TrainConfig(tune_text="last_9_layers"), image_tower, text_tower)
    without = load_text_tower(TowerSpec("text", f"saved_model:{tiny_text_model}"))
    with pytest.raises(UsageError, match="no trainable variables"):
        finetuning.check_settings(TrainConfig(tune_text="full"), image_tower, without)


def test_mixed_precision_is_close_to_full_precision(frozen: Frozen) -> None:
    _, tower = frozen
    texts = tf.constant(["a dog runs on the beach", "two people"])
    full = tower(texts)
    with mixed_precision():
        mixed = tower(texts)
    assert mixed.dtype == tf.float32
    assert 0 < float(tf.reduce_max(tf.abs(full - mixed))) < 0.1
    assert (
        float(tf.reduce_min(tf.reduce_sum(tf.math.l2_normalize(full, -1) * tf.math.l2_normalize(mixed, -1), -1)))
        > 0.999
    )
