"""A folded encoder must give the same dot products as the original encoder.

This module is also the worker process that folds and verifies, as tflite-support needs a separate process.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.device.folding_check import TOLERANCE, require_equal_dot_products
from indexer.device.packing import pack_searcher
from indexer.quantization.query_map import inverse_transpose
from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE
from searchforge.artifacts.tflite_graph import read_model, write_model
from searchforge.errors import JobError
from searchforge.processes import isolated
from tests.indexer.tiny_corpus import DIM, tiny_encoder

MODULE = "tests.indexer.device.test_folding_check"
WORDS = ("a", "at", "beach", "children", "dog", "food", "in", "on", "people", "playing", "snow", "table", "two", "with")
"""Words of the probe texts; the tiny encoder embeds texts of unknown words as zeros, which any map preserves."""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Returns a text encoder (False) and an image encoder (True)."""
    bundle = tiny_encoder()[2]
    text = tmp_path_factory.mktemp("encoder") / TEXT_TFLITE
    _write_with_words(bundle / TEXT_TFLITE, text)
    return {False: text, True: bundle / IMAGE_TFLITE}


@pytest.fixture(scope="module")
def session() -> Iterator[isolated.Session]:
    with isolated.Session(MODULE) as session:
        yield session


@pytest.mark.parametrize("images", [False, True])
def test_the_folded_map_is_verified(
    session: isolated.Session, encoders: dict[bool, Path], tmp_path: Path, images: bool
) -> None:
    transform = _transform()
    assert (
        _verify(session, encoders[images], tmp_path, inverse_transpose(transform), transform, images) < TOLERANCE / 10
    )


@pytest.mark.parametrize("images", [False, True])
def test_an_error_about_a_different_map_has_both_names_and_the_tolerance(
    session: isolated.Session, encoders: dict[bool, Path], tmp_path: Path, images: bool
) -> None:
    packed = inverse_transpose(_transform(seed=1))
    encoder = encoders[images]
    message = rf"products of packed\.tflite differ by .* from those of {encoder.name}, more than {TOLERANCE}"
    with pytest.raises(JobError, match=message):
        _verify(session, encoder, tmp_path, packed, _transform(), images)


@pytest.mark.parametrize("images", [False, True])
def test_a_map_that_is_off_by_one_percent_is_rejected(
    session: isolated.Session, encoders: dict[bool, Path], tmp_path: Path, images: bool
) -> None:
    transform = _transform()
    with pytest.raises(JobError, match=r"differ by up to 0\.01 "):
        _verify(session, encoders[images], tmp_path, 1.01 * inverse_transpose(transform), transform, images)


@pytest.mark.parametrize("images", [False, True])
def test_a_map_that_gives_nan_is_rejected(
    session: isolated.Session, encoders: dict[bool, Path], tmp_path: Path, images: bool
) -> None:
    with pytest.raises(JobError, match="differ by up to nan "):
        _verify(session, encoders[images], tmp_path, np.full((DIM, DIM), np.nan), _transform(), images)


def _transform(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(DIM, DIM)).astype(np.float32)


def _verify(
    session: isolated.Session, encoder: Path, folder: Path, query_map: np.ndarray, transform: np.ndarray, images: bool
) -> float:
    """Folds `query_map` into the encoder, verifies it against `transform`, and returns the difference."""
    for name, matrix in (("query_map", query_map), ("transform", transform)):
        np.save(folder / f"{name}.npy", matrix.astype(np.float32))
    reply = session.call({"encoder": str(encoder), "folder": str(folder), "images": images})
    difference: float = reply["difference"]
    return difference


def _write_with_words(encoder: Path, target: Path) -> None:
    """Writes the encoder with WORDS in place of the first words of its vocabulary."""
    model = encoder.read_bytes()
    target.write_bytes(write_model(read_model(model), len(model)))
    with zipfile.ZipFile(io.BytesIO(model)) as source, zipfile.ZipFile(target, "a") as archive:
        (name,) = source.namelist()
        vocabulary = source.read(name).decode()
        for number, word in enumerate(WORDS):
            vocabulary = vocabulary.replace(f"\nw{number}\n", f"\n{word}\n")
        archive.writestr(name, vocabulary)


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    folder, encoder = Path(request["folder"]), Path(request["encoder"])
    packed = folder / "packed.tflite"
    pack_searcher(encoder, None, packed, np.load(folder / "query_map.npy"))
    return {
        "difference": require_equal_dot_products(encoder, packed, np.load(folder / "transform.npy"), request["images"])
    }


if __name__ == "__main__":
    isolated.serve(_handle)
