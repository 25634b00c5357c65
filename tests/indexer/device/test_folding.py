"""Folding a matrix into an encoder maps its embeddings and leaves everything else unchanged."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow_lite_support.metadata import schema_py_generated as schema

from indexer.device.folding import fold_matrix
from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE
from searchforge.artifacts.tflite_graph import read_model, write_model
from searchforge.errors import JobError
from searchforge.processes import task_library
from tests.indexer.tiny_corpus import DIM, tiny_encoder

TEXTS = ["w1", "w2 w3", "w17 w4 w8", "unknown"]


@pytest.mark.parametrize("dim_out", [DIM, 5, 40])
def test_texts_are_embedded_and_then_mapped(tmp_path: Path, dim_out: int) -> None:
    encoder, _, bundle = tiny_encoder()
    matrix = _matrix(dim_out)
    expected = np.stack([encoder.text(text) for text in TEXTS[:-1]]) @ matrix.T
    searcher = _with_files(fold_matrix((bundle / TEXT_TFLITE).read_bytes(), matrix), bundle / TEXT_TFLITE, tmp_path)
    mapped = _embed_texts(searcher)
    np.testing.assert_allclose(mapped[:-1], expected, atol=1e-5)
    plain = _embed_texts(bundle / TEXT_TFLITE)
    np.testing.assert_allclose(mapped, plain @ matrix.T, atol=1e-5)


@pytest.mark.parametrize("dim_out", [DIM, 5])
def test_images_are_embedded_and_then_mapped(tmp_path: Path, dim_out: int) -> None:
    encoder, images, bundle = tiny_encoder()
    matrix = _matrix(dim_out)
    path = tmp_path / "mapped.tflite"
    path.write_bytes(fold_matrix((bundle / IMAGE_TFLITE).read_bytes(), matrix))
    expected = np.stack([encoder.image(pixels) for pixels in images[:5]]) @ matrix.T
    np.testing.assert_allclose(task_library.embed_images(path, images[:5])[0], expected, atol=1e-5)


def test_dot_products_with_mapped_vectors_are_preserved(tmp_path: Path) -> None:
    _, _, bundle = tiny_encoder()
    matrix = _matrix(DIM)
    inverse_transpose = np.linalg.inv(matrix.astype(np.float64)).T.astype(np.float32)
    vectors = np.random.default_rng(1).normal(size=(50, DIM)).astype(np.float32)
    model = fold_matrix((bundle / TEXT_TFLITE).read_bytes(), inverse_transpose)
    mapped = _embed_texts(_with_files(model, bundle / TEXT_TFLITE, tmp_path))
    plain = _embed_texts(bundle / TEXT_TFLITE)
    np.testing.assert_allclose(mapped @ (vectors @ matrix.T).T, plain @ vectors.T, atol=1e-3)


def test_the_output_keeps_its_name_and_tensor_names_stay_unique() -> None:
    before = _model()
    after = read_model(fold_matrix(_written(before), _matrix(5)))
    old, new = (graph.tensors[graph.outputs[0]] for graph in (before.subgraphs[0], after.subgraphs[0]))
    assert new.name == old.name
    assert (list(old.shape), list(new.shape)) == ([1, DIM], [1, 5])
    names = [tensor.name for tensor in after.subgraphs[0].tensors]
    assert len(set(names)) == len(names)
    again = read_model(fold_matrix(fold_matrix(_written(before), _matrix(DIM)), _matrix(DIM)))
    names = [tensor.name for tensor in again.subgraphs[0].tensors]
    assert len(set(names)) == len(names)


def test_signatures_return_the_mapped_embedding_under_the_same_name() -> None:
    model = _model()
    model.signatureDefs = [_signature(b"serving_default", model.subgraphs[0].outputs[0])]
    after = read_model(fold_matrix(_written(model), _matrix(5)))
    (signature,) = after.signatureDefs
    (output,) = signature.outputs
    assert (signature.signatureKey, output.name) == (b"serving_default", b"embedding")
    assert [output.tensorIndex] == list(after.subgraphs[0].outputs)


def test_everything_else_is_unchanged() -> None:
    before = _model()
    after = read_model(fold_matrix(_written(before), _matrix(5)))
    for old, new in zip(before.buffers, after.buffers, strict=False):
        assert (old.data is None) == (new.data is None)
        assert old.data is None or old.data.tobytes() == new.data.tobytes()
    assert [(entry.name, entry.buffer) for entry in after.metadata] == [
        (entry.name, entry.buffer) for entry in before.metadata
    ]
    assert list(after.subgraphs[0].inputs) == list(before.subgraphs[0].inputs)
    assert len(after.subgraphs[0].operators) == len(before.subgraphs[0].operators) + 1


def test_tensor_data_is_aligned_and_equal_inputs_give_equal_bytes() -> None:
    model = (tiny_encoder()[2] / TEXT_TFLITE).read_bytes()
    result = fold_matrix(model, _matrix(5))
    assert fold_matrix(model, _matrix(5)) == result
    start = np.frombuffer(result, np.uint8).ctypes.data
    data = [buffer.data for buffer in read_model(result).buffers if buffer.data is not None]
    assert len(data) > 1
    assert all((array.ctypes.data - start) % 16 == 0 for array in data)


def test_large_buffers_are_not_copied_into_lists() -> None:
    """A view of 32 MB needs no memory; a list would need gigabytes."""
    model = _model()
    large = schema.BufferT()
    large.data = np.zeros(32 << 20, np.uint8)
    model.buffers.append(large)
    after = read_model(fold_matrix(_written(model), _matrix(5)))
    assert isinstance(after.buffers[-2].data, np.ndarray)
    assert after.buffers[-2].data.base is not None


def _int8(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.outputs[0]].type = schema.TensorType.INT8


def _two_outputs(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.outputs = [int(graph.outputs[0]), int(graph.inputs[0])]


def _batch(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.outputs[0]].shape = [2, DIM]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_int8, "output is INT8, expected FLOAT32"),
        (_two_outputs, "has 2 outputs, expected 1"),
        (_batch, rf"output is \[2, {DIM}\], expected \[1, {DIM}\]"),
    ],
)
def test_unsuitable_outputs_are_rejected(change: Callable[[Any], None], message: str) -> None:
    model = _model()
    change(model)
    with pytest.raises(JobError, match=message):
        fold_matrix(_written(model), _matrix(DIM))


def test_a_matrix_of_a_different_dimension_is_rejected() -> None:
    with pytest.raises(JobError, match=rf"output is \[1, {DIM}\], expected \[1, 7\]"):
        fold_matrix(_written(_model()), np.eye(7, dtype=np.float32))


def test_a_file_that_is_not_a_model_is_rejected() -> None:
    with pytest.raises(JobError, match="expected a TFLite flatbuffer"):
        fold_matrix(b"not a model at all", _matrix(DIM))


def _matrix(dim_out: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(dim_out, DIM)).astype(np.float32)


def _model() -> Any:
    return read_model((tiny_encoder()[2] / TEXT_TFLITE).read_bytes())


def _written(model: Any) -> bytes:
    return write_model(model, 0)


def _signature(key: bytes, output: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = b"embedding", output
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.outputs = key, [entry]
    return signature


def _with_files(model: bytes, encoder: Path, folder: Path) -> Path:
    """Writes the model, followed by the encoder's associated files."""
    path = folder / "mapped.tflite"
    path.write_bytes(model)
    with zipfile.ZipFile(io.BytesIO(encoder.read_bytes())) as source, zipfile.ZipFile(path, "a") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return path


def _embed_texts(encoder: Path) -> np.ndarray:
    return task_library.embed_texts(encoder, TEXTS)[0]
