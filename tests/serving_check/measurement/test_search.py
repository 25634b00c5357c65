"""Searching a file through the Task Library, and the errors if that fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.encoding.reuse import QUANTIZER
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_map import inverse_transpose
from searchforge.errors import JobError, UsageError
from searchforge.preprocessing import Preprocessing
from searchforge.processes.isolated import ChildCrash
from serving_check.formats.leveldb_reader import read_table
from serving_check.measurement.search import Searcher
from tests.indexer.tiny_corpus import tiny_encoder
from tests.indexer.tiny_encoder import PREPROCESSING
from tests.serving_check.conftest import Built

TEXTS = ("", " ", "w1 " * 5_000, "\x00\x07", "\u202e\u05d0", "\U0001f600", "no such word", "w1\nw2", "\ud7ff\uffff")


@pytest.fixture(scope="module")
def folder(good: Built) -> Path:
    return good.folder


@pytest.fixture(scope="module")
def text_searcher(folder: Path) -> Iterator[Searcher]:
    with Searcher(folder / "text_searcher.tflite") as searcher:
        yield searcher


@pytest.fixture(scope="module")
def image_searcher(folder: Path) -> Iterator[Searcher]:
    with Searcher(folder / "image_searcher.tflite") as searcher:
        yield searcher


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_answered(text_searcher: Searcher, text: str) -> None:
    assert len(text_searcher.search_text(text, 5)) == 5


def test_images_of_any_size_and_mode_are_answered(image_searcher: Searcher, tmp_path: Path) -> None:
    for size in ((1, 1), (1, 300), (3000, 2), (8, 8)):
        for mode in ("RGB", "L", "LA", "RGBA", "P", "I;16"):
            Image.new(mode, size).save(tmp_path / "query.png")
            assert len(image_searcher.search_image(tmp_path / "query.png", 5)) == 5


def test_more_hits_can_be_requested_at_any_time(text_searcher: Searcher) -> None:
    few, many, again = (text_searcher.search_text("w3", k) for k in (2, 25, 2))
    assert few == again == many[:2]
    assert len(many) == 25
    assert [hit.score for hit in many] == sorted((hit.score for hit in many), reverse=True)


def test_a_file_is_opened_again_in_its_process_or_in_a_new_one_if_that_has_ended(folder: Path) -> None:
    with Searcher(folder / "text_searcher.tflite") as searcher:
        first, expected = searcher.pid, [hit.id for hit in searcher.search_text("w3", 5)]
        searcher.reopen(threads=2)
        assert searcher.pid == first
        assert [hit.id for hit in searcher.search_text("w3", 5)] == expected
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ChildCrash, match="signal 9"):
            searcher.search_text("w3", 5)
        searcher.reopen()
        assert searcher.pid != first
        assert [hit.id for hit in searcher.search_text("w3", 5)] == expected


def mapped(folder: Path, vector: np.ndarray) -> np.ndarray:
    """Returns a searcher's embedding of a query whose embedding by the bundle's encoder is `vector`."""
    quantizer = Quantizer.from_bytes((folder / QUANTIZER).read_bytes(), QUANTIZER)
    return inverse_transpose(quantizer.transform) @ vector


def test_the_encoder_of_a_searcher_is_that_of_the_bundle_with_the_query_map(
    folder: Path, text_searcher: Searcher, image_searcher: Searcher
) -> None:
    encoder, images, bundle = tiny_encoder()
    of_text, of_image = encoder.text("w1 w2"), encoder.image(images[4])
    path = str(folder.parents[2] / "images/00004.png")
    assert text_searcher.timed_embed("w1 w2")[0] == pytest.approx(mapped(folder, of_text), abs=1e-3)
    assert image_searcher.timed_embed(path)[0] == pytest.approx(mapped(folder, of_image), abs=1e-3)
    by_the_bundle, _ = image_searcher.timed_embed(path, bundle / "image_encoder.tflite")
    assert by_the_bundle == pytest.approx(of_image, abs=1e-5)


def test_a_large_photo_is_embedded_as_the_corpus_was(image_searcher: Searcher, tmp_path: Path) -> None:
    """The Task Library alone would skip pixels; and the array must outlive the call, whatever its size."""
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 2000, 3), np.uint8)
    pixels[:1500] //= 4
    Image.fromarray(pixels).save(tmp_path / "photo.png", compress_level=1)
    encoder, _, bundle = tiny_encoder()
    expected = encoder.image(Preprocessing.parse(PREPROCESSING).pixels((tmp_path / "photo.png").read_bytes(), 10**8))
    photo = str(tmp_path / "photo.png")
    assert image_searcher.timed_embed(photo, bundle / "image_encoder.tflite")[0] == pytest.approx(expected, abs=1e-5)


def test_queries_that_cannot_be_answered_get_a_reason(folder: Path, image_searcher: Searcher, tmp_path: Path) -> None:
    (tmp_path / "not-an-image").write_text("hello")
    with pytest.raises(UsageError, match="not_an_image"):
        image_searcher.search_image(tmp_path / "not-an-image")
    with pytest.raises(UsageError, match="cannot be read"):
        image_searcher.search_image(tmp_path / "absent.jpg")
    with pytest.raises(UsageError, match="takes image queries"):
        image_searcher.search_text("w1")
    with pytest.raises(UsageError, match="0 hits"):
        image_searcher.search_image(tmp_path / "absent.jpg", 0)
    good = folder.parents[2] / "images/00001.png"
    assert image_searcher.search_image(good, 1)[0].id == "00001.png"


def test_files_other_than_searchers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Searcher(tmp_path / "text_searcher.tflite")
    _, _, bundle = tiny_encoder()
    with pytest.raises(JobError, match=r"cannot open text_encoder\.tflite"):
        Searcher(bundle / "text_encoder.tflite")
    (tmp_path / "text_searcher.tflite").write_bytes(b"garbage")
    with pytest.raises(JobError, match="cannot open"):
        Searcher(tmp_path / "text_searcher.tflite")


def test_damage_to_a_table_is_detected(folder: Path) -> None:
    table = (folder / "index.ldb").read_bytes()
    whole = list(read_table(table))
    assert [key for key, _ in whole] == sorted(key for key, _ in whole)
    assert dict(whole)[b"USER_INFO"].startswith(b"{")
    for position in (0, 10, len(table) // 2, len(table) - 48, len(table) - 1):
        damaged = bytearray(table)
        damaged[position] ^= 0x11
        with pytest.raises(ValueError):
            list(read_table(bytes(damaged)))
    for length in (0, 47, 48, len(table) - 1):
        with pytest.raises(ValueError):
            list(read_table(table[:length]))
