"""Tests that layers exported for the device are close to the float layers, even with an outlier channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.towers.layers import ActivationRanges, dense, embedding, gelu, observe_ranges, trace_for_device


@pytest.fixture(scope="module")
def network() -> tf.Module:
    random = np.random.default_rng(0)
    module = tf.Module()
    module.first = tf.Variable(random.normal(size=(32, 64)).astype(np.float32))
    module.second = tf.Variable(random.normal(size=(64, 16)).astype(np.float32))
    return module


def _run(network: tf.Module, x: tf.Tensor) -> tf.Tensor:
    hidden = tf.nn.relu(dense(x, network.first, tf.ones(64)))
    return dense(hidden, network.second, tf.zeros(16))


def _inputs(rows: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, 32)).astype(np.float32)
    x[:, 3] *= 200.0  # an outlier channel, as transformers have
    x[:, 5] = 0.0
    return x


def _tflite(network: tf.Module, ranges: ActivationRanges | None, path: Path) -> Path:
    signature = [tf.TensorSpec([4, 32], tf.float32)]
    with trace_for_device(ranges):
        function = tf.function(lambda x: _run(network, x), input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path.write_bytes(converter.convert())
    return path


def test_static_int8_preserves_small_channels_next_to_an_outlier(network: tf.Module, tmp_path: Path) -> None:
    ranges = ActivationRanges()
    for seed in range(10):
        with observe_ranges(ranges):
            _run(network, tf.constant(_inputs(20, seed)))
    assert len(ranges.layers) == 2
    interpreter = tf.lite.Interpreter(str(_tflite(network, ranges, tmp_path / "int8.tflite")))
    interpreter.allocate_tensors()
    types = {t["dtype"] for t in interpreter.get_tensor_details() if t["shape"].size == 4 and t["shape"][0] == 64}
    assert types == {np.int8}  # the kernel of the first layer: [outputs, 1, 1, inputs]
    actual, expected = [], []
    for seed in range(100, 110):
        x = _inputs(4, seed)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        actual.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
        expected.append(_run(network, tf.constant(x)).numpy())
    a, b = np.concatenate(actual), np.concatenate(expected)
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.03


def test_observing_keeps_the_outputs_and_only_widens_ranges(network: tf.Module) -> None:
    ranges = ActivationRanges()
    x = tf.constant(_inputs(20, 0))
    with observe_ranges(ranges):
        observed = _run(network, x)
    np.testing.assert_array_equal(observed, _run(network, x))
    before = [part.copy() for layer in ranges.layers for part in layer]
    with observe_ranges(ranges):
        _run(network, x * 0.5)
    np.testing.assert_array_equal(np.concatenate(before), np.concatenate([p for layer in ranges.layers for p in layer]))
    with observe_ranges(ranges):
        _run(network, x * 2.0)
    np.testing.assert_allclose(ranges.layers[0][0], before[0] * 2)


def test_gelu_and_embeddings_for_the_device_are_close() -> None:
    x = tf.constant(np.linspace(-8, 8, 1001, dtype=np.float32))
    table = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * np.logspace(-3, 3, 50)[:, None]
    table, ids = tf.constant(table.astype(np.float32)), tf.constant([[0, 3], [49, 7]])
    with trace_for_device(ActivationRanges()):
        approximate, rows = gelu(x).numpy(), embedding(table, ids).numpy()
    np.testing.assert_allclose(approximate, gelu(x).numpy(), atol=6e-4)
    exact = tf.gather(table, ids).numpy()
    assert (np.abs(rows - exact).max(-1) <= np.abs(exact).max(-1) / 253).all()  # half a step of each row's scale
