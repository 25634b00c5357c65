"""Images become the input that the batch pipeline makes of them, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import searchforge_reader
from searchforge.preprocessing import Preprocessing

SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (7, 7), (16, 16), (31, 17), (64, 48), (640, 3), (5, 999), (301, 803)]
"""Heights and widths of images."""

INPUTS = [(1, 1), (16, 16), (7, 13), (64, 1), (224, 224)]


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", INPUTS)
def test_images_are_resized_as_the_batch_pipeline_does(filter_name: str, size: tuple[int, int]) -> None:
    text = f"decode|resize({size[0]},{size[1]},{filter_name})|scale(-1,1)"
    ours, theirs = searchforge_reader.Preprocessing(text), Preprocessing.parse(text)
    generator = np.random.default_rng(1)
    for height, width in SIZES:
        noise = generator.integers(256, size=(height, width, 3), dtype=np.uint8)
        for pixels in (noise, np.where(noise < 128, 0, 255).astype(np.uint8), np.full_like(noise, 255)):
            expected = theirs.resize(Image.fromarray(pixels))
            np.testing.assert_array_equal(ours.resize(pixels), expected, f"{height} x {width}")
            np.testing.assert_array_equal(ours.tensor(pixels), theirs.scale(expected), f"{height} x {width}")


@pytest.mark.parametrize(
    "scale",
    [
        "0,1",
        "-1,1",
        "0,255",
        "1,-1",
        "-0.5,0.123456",
        "[-2.1179,-2.03571,-1.80444],[2.24891,2.42857,2.64]",
        "[0,0,0],1",
    ],
)
def test_pixels_are_scaled_as_the_batch_pipeline_does(scale: str) -> None:
    text = f"decode|resize(16,16,bilinear)|scale({scale})"
    pixels = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
    theirs = Preprocessing.parse(text)
    np.testing.assert_array_equal(searchforge_reader.Preprocessing(text).tensor(pixels), theirs.scale(pixels))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "decode",
        "decode|resize(224,224,bilinear)|scale(-1,1) ",
        "decode|resize(224,224,nearest)|scale(-1,1)",
        "decode|resize(0,224,bilinear)|scale(-1,1)",
        "decode|resize(-1,224,bilinear)|scale(-1,1)",
        "decode|resize(224,224,bilinear)|scale(1,1)",
        "decode|resize(224,224,bilinear)|scale(-1,1.)",
        "decode|resize(224,224,bilinear)|scale([-1,1],1)",
        "decode|resize(224,224,bilinear)|scale(-1,1e3)",
        "decode|resize(1111111111111111111111,224,bilinear)|scale(-1,1)",
    ],
)
def test_other_strings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid preprocessing '.*'; expected the form"):
        searchforge_reader.Preprocessing(text)


def test_inputs_of_unbelievable_size_are_refused() -> None:
    with pytest.raises(searchforge_reader.UnsupportedFile, match="4097 pixels; this library resizes to at most 4096"):
        searchforge_reader.Preprocessing("decode|resize(4097,224,bilinear)|scale(-1,1)")


def test_arrays_that_are_no_images_are_refused() -> None:
    preprocessing = searchforge_reader.Preprocessing("decode|resize(8,8,bilinear)|scale(-1,1)")
    for pixels in (np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8, \[h, w, 3\]"):
            preprocessing.resize(pixels)
    with pytest.raises(ValueError, match="an image of 8 x 0 pixels"):
        preprocessing.resize(np.zeros((0, 8, 3), np.uint8))
