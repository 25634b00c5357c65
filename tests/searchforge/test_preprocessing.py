"""One string describes the preprocessing; every image is decoded or rejected with a reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from searchforge.errors import UsageError
from searchforge.image_decoding import RejectedInput, decode
from searchforge.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(6, 4)


def _encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _pixels(data: bytes, max_pixels: int = 10_000) -> np.ndarray:
    return PREPROCESSING.pixels(data, max_pixels)


@pytest.mark.parametrize(
    "text", ["decode|resize(224,192,bilinear)|scale(-1,1)", "decode|resize(9,9,bicubic)|scale(0,1)"]
)
def test_the_string_survives_the_round_trip(text: str) -> None:
    assert str(Preprocessing.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "decode", "decode|resize(224,224,nearest)|scale(-1,1)", "decode|crop(3)|scale(0,1)"]
)
def test_an_invalid_string_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="expected the form"):
        Preprocessing.parse(text)


@pytest.mark.parametrize(("low", "high", "mean", "std"), [(-1, 1, 127.5, 127.5), (0, 1, 0, 255)])
def test_mean_and_std_match_the_task_library(low: float, high: float, mean: float, std: float) -> None:
    scale = Preprocessing(8, 8, "bilinear", low, high)
    assert (scale.mean, scale.std) == (mean, std)
    assert ((0 - scale.mean) / scale.std, (255 - scale.mean) / scale.std) == (low, high)


@pytest.mark.parametrize("part", ["scale(1,1)", "scale([0,1,2],[1,1,3])", "resize(0,4,bilinear)"])
def test_a_string_that_loses_the_image_is_rejected(part: str) -> None:
    parts = {"resize": "resize(6,4,bilinear)", "scale": "scale(-1,1)"} | {part.partition("(")[0]: part}
    with pytest.raises(UsageError, match=r"expected a size of at least 1 x 1, and two different values"):
        Preprocessing.parse(f"decode|{parts['resize']}|{parts['scale']}")


def test_values_of_each_channel_are_scaled_separately() -> None:
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    preprocessing = Preprocessing.standardizing(6, 4, mean, std)
    assert Preprocessing.parse(str(preprocessing)) == preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    np.testing.assert_allclose(preprocessing.scale(pixels), (pixels - mean) / np.array(std), atol=1e-4)
    assert str(Preprocessing.standardizing(6, 4, [127.5], [127.5])) == "decode|resize(6,4,bilinear)|scale(-1,1)"


def test_images_are_stretched_not_cropped() -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    pixels = _pixels(_encode(image))
    assert pixels.shape == (6, 4, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[5, 3].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        *((mode, "PNG") for mode in ("L", "1", "P", "LA", "RGBA", "I;16")),
        *((mode, "JPEG") for mode in ("L", "CMYK")),
        *((mode, "BMP") for mode in ("L", "1")),
        ("RGBA", "WEBP"),
        ("P", "GIF"),
    ],
)
def test_every_mode_is_converted_to_rgb(mode: str, format: str) -> None:
    image = Image.new(mode, (4, 6), 65535) if mode == "I;16" else Image.new("RGB", (4, 6), "white").convert(mode)
    assert _pixels(_encode(image, format)).min() >= 253


def test_transparency_becomes_white() -> None:
    assert _pixels(_encode(Image.new("RGBA", (4, 6), (0, 0, 0, 0)))).min() == 255


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (6, 4), "red")
    image.paste("blue", (3, 0, 6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise: the left edge becomes the top
    pixels = _pixels(_encode(image, "PNG", exif=exif))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[5, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("turned", [False, True])
def test_a_jpeg_scaled_during_decoding_has_nearly_the_same_pixels(turned: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    photo = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    data, preprocessing = _encode(photo, "JPEG", exif=exif, quality=95), Preprocessing(96, 128)
    assert preprocessing.decode(data, 10**7).width < 1200, "it was decoded whole"
    difference = preprocessing.pixels(data, 10**7).astype(int) - preprocessing.resize(decode(data, 10**7))
    assert np.abs(difference).mean() < 1 and np.abs(difference).max() < 16


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not_an_image"),
        (b"%PDF-1.4 something", "not_an_image"),
        (_encode(Image.effect_noise((50, 50), 90), "JPEG")[:-300], "truncated"),
        (_encode(Image.new("RGB", (200, 200))), "too_many_pixels"),
        (_encode(Image.new("RGB", (5, 5)), "TIFF"), "not_an_image"),
    ],
)
def test_invalid_bytes_are_rejected_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(RejectedInput) as error:
        _pixels(data)
    assert error.value.reason == reason


def test_mutated_images_are_decoded_or_rejected() -> None:
    generator = np.random.default_rng(0)
    good = [_encode(Image.new("RGB", (30, 20), "green"), format) for format in ("PNG", "JPEG", "WEBP", "BMP", "GIF")]
    for index in range(300):
        data = bytearray(good[index % len(good)])
        for position in generator.integers(0, len(data), 4):
            data[position] = generator.integers(0, 256)
        try:
            assert _pixels(bytes(data[: generator.integers(1, len(data) + 1)])).shape == (6, 4, 3)
        except RejectedInput as error:
            assert error.reason
